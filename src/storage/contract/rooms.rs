//! Who is in a channel, and what they may do there.

use super::*;

everywhere! {
    a_channel_is_made_with_many_members_at_once(world) {
        let ana = world.user("ana", Role::Member).await;
        let mut people = Vec::new();
        for n in 0..60 {
            people.push(world.user(&format!("user-{n}"), Role::Member).await);
        }
        let (bob, leaver) = (people[7], world.user("leaver", Role::Member).await);
        let quiet = world.channel(ana, "quiet", &[bob]).await;
        let root = world.user("root", Role::Admin).await;
        world.ask(root, command::DeactivateUser { user_id: leaver.user_id }).await.unwrap();
        let create = |name: &str, members: &[Principal]| command::CreateChannel {
            name: name.into(), private: false, topic: String::new(), purpose: String::new(),
            members: members.iter().map(|m| m.user_id).collect(),
        };
        let twice: Vec<Principal> = people.iter().chain(&people).copied().chain([ana]).collect();
        let with_leaver: Vec<Principal> = people.iter().copied().chain([leaver]).collect();
        let (before, big, refused, behind) = tokio::join!(
            world.ask(ana, says(quiet, "before", None)),
            world.ask(ana, create("big", &twice)),
            world.ask(ana, create("bigger", &with_leaver)),
            world.ask(ana, says(quiet, "behind", None)),
        );
        assert!(before.is_ok() && behind.is_ok());
        assert_eq!(refused.unwrap_err().code, Code::NotFound, "nobody who is gone is put into a channel");
        let big: Channel = serde_json::from_str(&big.unwrap().json).unwrap();
        let mut db = world.store.read().await.unwrap();
        assert!(channels::by_name(&mut db, "bigger").await.unwrap().is_none());
        let members = channels::members(&mut db, big.id, None, 100).await.unwrap();
        assert_eq!(members.len(), 61);
        let owners: Vec<UserId> = members.iter().filter(|m| m.role == ChannelRole::Owner).map(|m| m.user_id).collect();
        assert_eq!(owners, [ana.user_id]);
        let own = world.log(bob.user_id).await;
        assert_eq!(own.iter().map(|e| (e.seq, e.kind)).collect::<Vec<_>>(),
            [(1, EventKind::UserChannelAdded), (2, EventKind::UserChannelAdded)]);
        assert!(own[1].payload.contains(&big.id.to_string()) && own[1].actor == Some(ana.user_id));
        let told: Vec<_> = world.told.lock().unwrap().iter().filter(|e| e.stream == bob.user_id.into()).map(|e| e.id).collect();
        assert_eq!(told, own.iter().map(|e| e.id).collect::<Vec<_>>(), "what is told is what is stored");
    }

    direct_messages_are_found_again(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let one: Channel = world.get(ana, command::OpenDirect { user_ids: vec![bob.user_id] }).await;
        let two: Channel = world.get(bob, command::OpenDirect { user_ids: vec![ana.user_id] }).await;
        assert_eq!((one.id, one.kind), (two.id, ChannelKind::Direct));
        assert_eq!(world.membership(ana, one.id).await.with, [bob.user_id]);
        let notes: Channel = world.get(ana, command::OpenDirect { user_ids: vec![] }).await;
        assert_ne!(notes.id, one.id);
    }

    leaving_ends_what_one_may_read_and_the_last_owner_stays(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let refused = world.ask(ana, command::LeaveChannel { channel_id: room }).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
        let refused = world.ask(bob, says(room, "still here?", None)).await.unwrap_err();
        assert_eq!(refused.code, Code::Forbidden);
        let own: Vec<EventKind> = world.log(bob.user_id).await.iter().map(|e| e.kind).collect();
        assert_eq!(own, [EventKind::UserChannelAdded, EventKind::UserChannelRemoved]);
    }

    a_channel_keeps_an_owner_who_can_look_after_it(world) {
        let root = world.user("root", Role::Admin).await;
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let cem = world.user("cem", Role::Member).await;
        let role = |channel_id, who: Principal, role| command::SetChannelRole { channel_id, user_id: who.user_id, role };
        let code = |answer: Result<Reply, Refusal>| answer.map(drop).map_err(|refusal| refusal.code);
        let alone = world.channel(ana, "alone", &[]).await;
        let answer = world.ask(ana, role(alone, ana, ChannelRole::Member)).await;
        assert_eq!(code(answer), Err(Code::Conflict), "others may come, and she could let nobody be an owner");
        world.ask(ana, command::LeaveChannel { channel_id: alone }).await.unwrap();

        let room = world.channel(ana, "room", &[bob, cem]).await;
        world.ask(ana, role(room, bob, ChannelRole::Owner)).await.unwrap();
        world.ask(root, command::DeactivateUser { user_id: ana.user_id }).await.unwrap();
        for answer in [
            world.ask(bob, command::LeaveChannel { channel_id: room }).await,
            world.ask(bob, role(room, bob, ChannelRole::Member)).await,
        ] {
            assert_eq!(code(answer), Err(Code::Conflict), "ana is an owner still, but she is not here");
        }
        world.ask(bob, role(room, cem, ChannelRole::Moderator)).await.unwrap();
        let remove = command::RemoveMember { channel_id: room, user_id: ana.user_id };
        let answer = world.ask(cem, remove.clone()).await;
        assert_eq!(code(answer), Err(Code::Forbidden), "she may come back");
        world.ask(bob, remove).await.unwrap();
        world.ask(cem, command::LeaveChannel { channel_id: room }).await.unwrap();
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
    }
}
