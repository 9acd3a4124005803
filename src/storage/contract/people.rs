//! Users, their sign-ins, and what ends by itself.

use super::*;

everywhere! {
    a_guest_sees_those_with_whom_they_share_a_channel(world) {
        let (ana, bob, eve) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await, world.user("eve", Role::Member).await);
        let gus = world.user("gus", Role::Guest).await;
        world.channel(ana, "room", &[gus, bob]).await;
        world.channel(bob, "other", &[gus, eve]).await;
        world.channel(eve, "apart", &[]).await;
        let ids = |people: &[Principal]| -> Vec<UserId> { people.iter().map(|person| person.user_id).collect() };
        let cid = world.user("cid", Role::Member).await;
        let seen = async |who, users: Vec<UserId>| users::seen_by(&world.store, who, users).await.unwrap();
        assert_eq!(seen(gus, ids(&[eve, cid, gus, bob, cid, eve])).await, ids(&[eve, gus, bob, eve]), "in their order");
        assert_eq!(seen(ana, ids(&[cid, eve])).await, ids(&[cid, eve]), "a member sees everybody");
        assert_eq!(seen(gus, ids(&[cid])).await, []);
        let mut many: Vec<UserId> = (0..2_000).map(|_| UserId::new(world.clock.now())).collect();
        many.push(ana.user_id);
        assert_eq!(seen(gus, many).await, ids(&[ana]));
    }

    what_has_ended_is_deleted_in_small_pieces(world) {
        let root = world.user("root", Role::Admin).await;
        let room = world.channel(root, "room", &[]).await;
        let prune = async |what, before| -> u64 {
            let work = Work::Account(Account::Prune { what, before });
            let reply = world.writer.write(SYSTEM, work, None).await.unwrap();
            serde_json::from_str::<Pruned>(&reply.json).unwrap().pruned
        };
        let start = world.clock.now();
        let in_a_minute = start.plus_seconds(60);
        let sign_in = async |name: &str, expires_at| {
            let token = Token { id: TokenId::new(start), label: String::new(), created_at: start, expires_at, slides: false };
            let (user, proof, id, hash) = (root.user_id, Proof::Operator, token.id, Secret::hash(name));
            world.writer.write(SYSTEM, Work::Account(Account::SignIn { user, proof, token, hash }), None).await.unwrap();
            id
        };
        sign_in("brief", Some(in_a_minute)).await;
        let ended = sign_in("ended", None).await;
        sign_in("lasting", None).await;
        let out = Account::SignOut { user: root.user_id, token: ended };
        world.writer.write(SYSTEM, Work::Account(out), None).await.unwrap();
        let invite = |max_uses, s| command::CreateInvite { role: None, max_uses: Some(max_uses), expires_in_s: Some(s) };
        let used_up: Invite = world.get(root, invite(1, 86_400)).await;
        let sign_up = Account::SignUp {
            code_hash: Secret::hash(&used_up.code.unwrap()),
            name: "new".into(),
            display_name: None,
            password_hash: String::new(),
        };
        world.writer.write(SYSTEM, Work::Account(sign_up), None).await.unwrap();
        world.get::<Invite>(root, invite(5, 60)).await;
        let revoked: Invite = world.get(root, invite(5, 86_400)).await;
        world.ask(root, command::RevokeInvite { invite_id: revoked.id }).await.unwrap();
        let open: Invite = world.get(root, invite(5, 86_400)).await;
        let sends = (0..1_200).map(|n| {
            let world = &world;
            async move { world.ask(root, says(room, "hi", Some(&format!("k{n}")))).await.unwrap() }
        });
        futures_util::future::join_all(sends).await;
        world.clock.advance(Duration::from_secs(3_600));
        world.ask(root, says(room, "hi", Some("young"))).await.unwrap();

        let later = start.plus_seconds(600);
        for what in [Ended::Keys, Ended::Tokens, Ended::Invites] {
            assert_eq!(prune(what, start).await, 0, "nothing had ended yet: {what:?}");
        }
        assert_eq!((prune(Ended::Keys, later).await, prune(Ended::Keys, later).await), (1_000, 200));
        assert_eq!(prune(Ended::Keys, later).await, 0);
        assert!(world.ask(root, says(room, "hi", Some("young"))).await.unwrap().duplicate, "a young one is kept");
        assert!(!world.ask(root, says(room, "hi", Some("k0"))).await.unwrap().duplicate, "an old one is forgotten");
        assert_eq!(prune(Ended::Tokens, later).await, 2);
        assert_eq!(prune(Ended::Invites, later).await, 3);
        let mut db = world.store.read().await.unwrap();
        let now = world.clock.now();
        assert_eq!(tokens::of_user(&mut db, root.user_id, now, None, 10).await.unwrap().len(), 1);
        let invites = tokens::open_invites(&mut db, now, None, 10).await.unwrap();
        assert_eq!(invites.iter().map(|invite| invite.id).collect::<Vec<_>>(), [open.id]);
        assert_eq!(prune(Ended::Tokens, now).await + prune(Ended::Invites, now).await, 0);
    }

    when_somebody_was_last_seen_only_moves_on(world) {
        let (ana, bob) = (world.user("ana", Role::Member).await.user_id, world.user("bob", Role::Member).await.user_id);
        let keep = async |users: &[(UserId, Timestamp)]| {
            let work = Work::Account(Account::Seen { users: users.to_vec() });
            world.writer.write(SYSTEM, work, None).await.unwrap();
        };
        let seen = async || {
            let seen = last_seen::of(&mut world.store.read().await.unwrap(), &[ana, bob]).await.unwrap();
            let of = |user| seen.iter().find(|(known, _)| *known == user).map(|(_, at)| *at);
            [of(ana), of(bob)]
        };
        assert_eq!(seen().await, [None, None]);
        let at = |s| Timestamp(1_790_000_000_000_007).plus_seconds(s);
        keep(&[(ana, at(0))]).await;
        keep(&[(ana, at(-60)), (bob, at(5))]).await;
        assert_eq!(seen().await, [Some(at(0)), Some(at(5))]);
        keep(&[(ana, at(60)), (bob, at(4))]).await;
        assert_eq!(seen().await, [Some(at(60)), Some(at(5))]);
    }

    a_sign_in_is_stored_only_while_what_it_was_given_for_still_holds(world) {
        let (root, mia) = (world.user("root", Role::Admin).await, world.user("mia", Role::Member).await);
        let signs_in = async |caller: Principal, user: Principal, proof: Proof| {
            let (id, now) = (TokenId::new(world.clock.now()), world.clock.now());
            let token = Token { id, label: String::new(), created_at: now, expires_at: None, slides: false };
            let (user, hash) = (user.user_id, Secret::hash(&id.to_string()));
            let sign_in = Account::SignIn { user, proof, token, hash };
            let stored = world.writer.write(caller, Work::Account(sign_in), None).await;
            stored.map(|_| Principal { token_id: id, ..caller }).map_err(|refusal| refusal.code)
        };
        let sets_password = async |proof: Proof, hash: &str| {
            let set = Account::SetPassword { user: mia.user_id, proof, hash: hash.into(), sign_out: true };
            world.writer.write(SYSTEM, Work::Account(set), None).await.map(drop).map_err(|refusal| refusal.code)
        };
        let knows = |hash: &str| Proof::Password(hash.into());
        assert_eq!(signs_in(SYSTEM, mia, knows("")).await.unwrap_err(), Code::Unauthenticated, "there is no password");
        sets_password(Proof::Operator, "first").await.unwrap();
        signs_in(SYSTEM, mia, knows("first")).await.unwrap();
        sets_password(knows("first"), "second").await.unwrap();
        assert_eq!(signs_in(SYSTEM, mia, knows("first")).await.unwrap_err(), Code::Unauthenticated, "it was changed");
        assert_eq!(sets_password(knows("first"), "third").await.unwrap_err(), Code::Unauthenticated, "it was changed");
        signs_in(SYSTEM, mia, knows("second")).await.unwrap();

        // Who asks by a sign-in needs it to stand, and for others an administrator's role.
        let admin = signs_in(root, root, Proof::Operator).await.unwrap();
        let member = signs_in(mia, mia, Proof::Operator).await.unwrap();
        signs_in(member, mia, Proof::SignIn).await.unwrap();
        assert_eq!(signs_in(member, root, Proof::SignIn).await.unwrap_err(), Code::Forbidden);
        signs_in(admin, mia, Proof::SignIn).await.unwrap();
        sets_password(knows("second"), "third").await.unwrap();
        assert_eq!(signs_in(member, mia, Proof::SignIn).await.unwrap_err(), Code::Unauthenticated, "it was ended");
        // The administrator that they are believed to be is one no more.
        world.user("other", Role::Admin).await;
        let demote = command::SetUserRole { user_id: root.user_id, role: Role::Member };
        world.ask(root, demote).await.unwrap();
        assert_eq!(signs_in(admin, mia, Proof::SignIn).await.unwrap_err(), Code::Forbidden);
    }

    account_work_with_a_key_is_done_once_and_its_answer_kept_with_it(world) {
        let root = world.user("root", Role::Admin).await;
        let room = world.channel(root, "room", &[]).await;
        let once = async |key: &str, request: u8| {
            let now = world.clock.now();
            let token = Token { id: TokenId::new(now), label: String::new(), created_at: now, expires_at: None, slides: false };
            let (proof, hash) = (Proof::Operator, Secret::hash(&token.id.to_string()));
            let account = Account::SignIn { user: root.user_id, proof, token, hash };
            let work = Work::Once { account: account.into(), key: key.into(), hash: [request; 32] };
            world.writer.write(root, work, None).await.map(|reply| reply.duplicate).map_err(|refusal| refusal.code)
        };
        let many = futures_util::future::join_all((0..4).map(|_| once("k", 1))).await;
        assert_eq!(many.iter().filter(|done| **done == Ok(false)).count(), 1, "{many:?}");
        assert_eq!(many.iter().filter(|done| **done == Ok(true)).count(), 3, "{many:?}");
        assert_eq!(once("k", 2).await, Err(Code::KeyReused));
        let mut db = world.store.read().await.unwrap();
        assert_eq!(tokens::of_user(&mut db, root.user_id, world.clock.now(), None, 10).await.unwrap().len(), 1);
        world.ask(root, says(room, "hi", Some("of a message"))).await.unwrap();
        assert_eq!(once("of a message", 1).await, Err(Code::KeyReused));
        // An answer that comes when its key was taken meanwhile is not kept, and breaks nothing.
        let (user, key, hash) = (root.user_id, "of a message".to_owned(), [3; 32]);
        let keep = Account::KeepAnswer { user, key: key.clone(), hash, response: "{}".into() };
        world.writer.write(SYSTEM, Work::Account(keep), None).await.unwrap();
        assert!(world.ask(root, says(room, "hi", Some("of a message"))).await.unwrap().duplicate);
        let look = async |key: &str| {
            let look = Account::FirstAnswer { user, key: key.to_owned(), hash };
            world.writer.write(SYSTEM, Work::Account(look), None).await.map(|found| found.json)
        };
        assert_eq!(look(&key).await.unwrap_err().code, Code::KeyReused);
        assert_eq!(look("of nothing").await.unwrap(), NO_ANSWER);
    }

    the_last_administrator_stays_and_names_are_unique(world) {
        let root = world.user("root", Role::Admin).await;
        let refused = world.ask(root, command::DeactivateUser { user_id: root.user_id }).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        let taken = command::CreateUser { name: "ROOT".into(), display_name: None, role: Role::Member, bot: false };
        assert_eq!(world.ask(root, taken).await.unwrap_err().code, Code::Conflict);
        let member = world.user("mia", Role::Member).await;
        let refused = world.ask(member, command::SetUserRole { user_id: member.user_id, role: Role::Admin }).await;
        assert_eq!(refused.unwrap_err().code, Code::Forbidden);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(users::list(&mut db, "", 10).await.unwrap().len(), 2);
    }
}
