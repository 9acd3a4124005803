//! What the writer remembers of channels and their people decides nothing that the store would decide otherwise.

use super::*;

everywhere! {
    what_is_remembered_is_forgotten_when_it_changes(world) {
        let (root, ana) = (world.user("root", Role::Admin).await, world.user("ana", Role::Member).await);
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let other = world.channel(ana, "other", &[bob]).await;
        let says_hi = async || {
            let codes = async |room| world.ask(bob, says(room, "hi", None)).await.map(drop).map_err(|refusal| refusal.code);
            (codes(room).await, codes(other).await)
        };
        let (yes, no) = (Ok(()), |code| Err(code));
        assert_eq!(says_hi().await, (yes, yes));
        assert_eq!(says_hi().await, (yes, yes), "and from memory");
        let (channel_id, user_id) = (room, bob.user_id);
        let steps: Vec<(Principal, Command, _)> = vec![
            (ana, command::ArchiveChannel { channel_id }.into(), (no(Code::Archived), yes)),
            (ana, command::UnarchiveChannel { channel_id }.into(), (yes, yes)),
            (ana, command::RemoveMember { channel_id, user_id }.into(), (no(Code::Forbidden), yes)),
            (ana, command::InviteMember { channel_id, user_id }.into(), (yes, yes)),
            (bob, command::LeaveChannel { channel_id }.into(), (no(Code::Forbidden), yes)),
            (bob, command::JoinChannel { channel_id }.into(), (yes, yes)),
            (
                ana,
                command::UpdateChannel {
                    channel_id, name: None, topic: None, purpose: None, posting: Some(Posting::Owners),
                }.into(),
                (no(Code::Forbidden), yes),
            ),
            (ana, command::SetChannelRole { channel_id, user_id, role: ChannelRole::Owner }.into(), (yes, yes)),
            (root, command::DeactivateUser { user_id }.into(), (no(Code::NotFound), no(Code::NotFound))),
            (root, command::ReactivateUser { user_id }.into(), (yes, yes)),
            (bob, command::AddReaction { channel_id, seq: 3, emoji: "wave".into() }.into(), (yes, yes)),
        ];
        for (who, command, answers) in steps {
            let name = command.name();
            world.ask(who, command).await.unwrap();
            for _ in 0..2 {
                assert_eq!(says_hi().await, answers, "{name}");
            }
        }
        for room in [room, other] {
            let seqs: Vec<i64> = world.log(room).await.iter().map(|event| event.seq).collect();
            assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
        }
    }

    a_key_that_was_used_is_found_among_sends_from_memory(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let first: Sent = world.get(ana, says(room, "one", Some("k1"))).await;
        let all = async |sends: &[(&str, &str)]| {
            let asks = sends.iter().map(|(text, key)| world.ask(ana, says(room, text, Some(key))));
            futures_util::future::join_all(asks).await
        };
        let answers = all(&[("two", "k2"), ("one", "k1"), ("other", "k1"), ("three", "k3")]).await;
        let seqs: Vec<_> = answers.iter().map(|answer| {
            answer.as_ref().map(|reply| (serde_json::from_str::<Sent>(&reply.json).unwrap().seq, reply.duplicate)).map_err(|r| r.code)
        }).collect();
        assert_eq!(seqs, [Ok((3, false)), Ok((first.seq, true)), Err(Code::KeyReused), Ok((4, false))]);
        assert_eq!(world.log(room).await.len(), 4);
    }

    who_may_no_longer_post_may_still_repeat(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let first: Sent = world.get(ana, says(room, "one", Some("k1"))).await;
        world.ask(ana, command::ArchiveChannel { channel_id: room }).await.unwrap();
        for _ in 0..2 {
            let refused = world.ask(ana, says(room, "two", Some("k2"))).await.unwrap_err();
            assert_eq!(refused.code, Code::Archived);
            let again = world.ask(ana, says(room, "one", Some("k1"))).await.unwrap();
            assert_eq!((serde_json::from_str::<Sent>(&again.json).unwrap().seq, again.duplicate), (first.seq, true));
        }
    }

    two_writers_on_one_database_number_their_messages_in_one_row(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let store = Store::open(&Options::new(&world.url)).await.unwrap();
        let limits = Limits { queue: 4_096, batch: 256, patience: Duration::from_secs(5), statement: LIMIT };
        let sink: crate::storage::writer::Sink = Arc::new(|_| {});
        let (other, _) =
            Writer::start(store, world.clock.clone(), NodeId::new(world.clock.now()), limits, sink, CancellationToken::new()).unwrap();
        for n in 0..40 {
            let writer = if n % 3 == 0 { &other } else { &world.writer };
            let send = says(room, &format!("text {n}"), Some(&format!("k{n}")));
            writer.write(ana, Work::Command(send.into()), Some(format!("k{n}"))).await.unwrap();
        }
        let log = world.log(room).await;
        let texts: Vec<bool> = (0..40).map(|n| log[n + 1].payload.contains(&format!("text {n}\""))).collect();
        assert!(texts.iter().all(|there| *there), "{texts:?}");
        assert_eq!(log.last().unwrap().seq, 41);
    }
}
