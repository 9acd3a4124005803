//! What the log keeps, and what each event says.

use super::*;

everywhere! {
    what_a_session_hears_and_its_client_missed_is_read_at_once(world) {
        let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
        let now = world.clock.now();
        let ends = Some(now.plus_seconds(60));
        let token = Token { id: ana.token_id, label: String::new(), created_at: now, expires_at: ends, slides: true };
        let sign_in = Account::SignIn { user: ana.user_id, proof: Proof::Operator, token, hash: Secret::hash("ana") };
        world.writer.write(SYSTEM, Work::Account(sign_in), None).await.unwrap();
        let (first, second) = (world.channel(ana, "first", &[bob]).await, world.channel(ana, "second", &[]).await);
        let foreign = world.channel(bob, "foreign", &[]).await;
        for n in 0..10 {
            for channel in [first, second] {
                world.ask(ana, says(channel, &format!("hello {n}"), None)).await.unwrap();
            }
            world.ask(bob, says(foreign, "not for her", None)).await.unwrap();
        }
        let read = async |cursors: &[(StreamId, i64)], limit, now| {
            let cursors = cursors.iter().copied().collect();
            catch_up::read(&mut world.store.read().await.unwrap(), ana, &cursors, limit, now).await.unwrap()
        };
        let (first, second, foreign): (StreamId, StreamId, StreamId) = (first.into(), second.into(), foreign.into());
        let mut heads = std::collections::HashMap::new();
        for stream in [first, second] {
            heads.insert(stream, events::head(&mut world.store.read().await.unwrap(), stream).await.unwrap());
        }
        let head = |stream| heads[&stream];

        let nothing = read(&[], 64, now).await;
        let sign_in = nothing.sign_in.unwrap();
        assert_eq!((sign_in.principal.user_id, sign_in.principal.role), (ana.user_id, Role::Member));
        assert_eq!((sign_in.principal.token_id, sign_in.expires_at, sign_in.slides), (ana.token_id, ends, true));
        let mut streams: Vec<StreamId> = nothing.streams.iter().map(|heard| heard.stream).collect();
        streams.sort();
        let mut expected = [first, second, ana.user_id.into(), StreamId::WORKSPACE];
        expected.sort();
        assert_eq!(streams, expected);
        assert!(nothing.events.is_empty() && nothing.streams.iter().all(|heard| heard.missed_since.is_none()));

        let from = [(first, head(first) - 3), (second, head(second) - 2), (foreign, 0)];
        let all = read(&from, 64, now).await;
        let seqs = |found: &CatchUp, stream| -> Vec<i64> {
            found.events.iter().filter(|event| event.stream == stream).map(|event| event.seq).collect()
        };
        assert_eq!(seqs(&all, first), (head(first) - 2..=head(first)).collect::<Vec<_>>());
        assert_eq!(seqs(&all, second), (head(second) - 1..=head(second)).collect::<Vec<_>>());
        assert!(seqs(&all, foreign).is_empty());
        let since = |stream| all.streams.iter().find(|heard| heard.stream == stream).unwrap().missed_since;
        let oldest = |stream| all.events.iter().find(|event| event.stream == stream).map(|event| event.at);
        assert!(since(first).is_some() && since(first) == oldest(first) && since(second) == oldest(second));
        assert_eq!(since(ana.user_id.into()), None);

        for limit in 0..6 {
            let some = read(&from, limit, now).await;
            assert_eq!(some.events.len() as i64, limit.min(5));
            for (stream, after) in &from[..2] {
                let read = seqs(&some, *stream);
                assert_eq!(read, (after + 1..=after + read.len() as i64).collect::<Vec<_>>(), "without a hole");
            }
        }
        // Numbers that nobody gave out.
        let odd = read(&[(first, i64::MAX), (second, head(second) + 1), (ana.user_id.into(), 0)], 64, now).await;
        assert!(seqs(&odd, first).is_empty() && seqs(&odd, second).is_empty());
        let over = read(&from, 64, now.plus_seconds(61)).await;
        assert!(over.sign_in.is_none() && over.streams.len() == 4);
    }

    of_a_draft_the_log_keeps_the_newest_text_alone(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let draft = async |text: &str, thread_seq| {
            world.ask(bob, command::SetDraft { channel_id: room, thread_seq, text: text.into() }).await.unwrap();
        };
        let told = async || {
            let drafts = world.log(bob.user_id).await.into_iter().filter(|e| e.kind == EventKind::UserDraft);
            let text = |event: Event| serde_json::from_str::<personal::Draft>(&event.payload).unwrap().text;
            drafts.map(text).collect::<Vec<_>>()
        };
        draft("I think", None).await;
        draft("in a thread", Some(2)).await;
        draft("I think that", None).await;
        assert_eq!(told().await, ["", "in a thread", "I think that"]);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(personal::drafts(&mut db, bob.user_id, None, 10).await.unwrap().0.len(), 2);
        draft("", None).await;
        assert_eq!(told().await, ["", "in a thread", "", ""]);
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
        assert_eq!(told().await, ["", "", "", ""]);
        assert!(personal::drafts(&mut db, bob.user_id, None, 10).await.unwrap().0.is_empty());
    }

    every_payload_has_only_the_fields_of_its_kind(world) {
        let ana = world.user("ana", Role::Admin).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let sent: Sent = world.get(ana, says(room, "hi @bob", Some("k"))).await;
        let mut reply = says(room, "re", None);
        reply.thread_seq = Some(sent.seq);
        let (c, seq) = (room, sent.seq);
        let all: Vec<Command> = vec![
            reply.into(),
            command::EditMessage { channel_id: c, seq, text: "ho".into() }.into(),
            command::AddReaction { channel_id: c, seq, emoji: "+1".into() }.into(),
            command::RemoveReaction { channel_id: c, seq, emoji: "+1".into() }.into(),
            command::AddPin { channel_id: c, seq }.into(),
            command::RemovePin { channel_id: c, seq }.into(),
            command::AddSaved { channel_id: c, seq }.into(),
            command::SetDraft { channel_id: c, thread_seq: None, text: "draft".into() }.into(),
            command::MarkUnread { channel_id: c, seq }.into(),
            command::SetChannelPreferences { channel_id: c, muted: Some(true), notify: None }.into(),
            command::UnfollowThread { channel_id: c, thread_seq: seq }.into(),
            command::UpdateChannel { channel_id: c, name: Some("r2".into()), topic: Some("t".into()), purpose: None,
                posting: None }.into(),
            command::SetChannelRole { channel_id: c, user_id: bob.user_id, role: ChannelRole::Owner }.into(),
            command::RemoveMember { channel_id: c, user_id: bob.user_id }.into(),
            command::InviteMember { channel_id: c, user_id: bob.user_id }.into(),
            command::DeleteMessage { channel_id: c, seq }.into(),
            command::ArchiveChannel { channel_id: c }.into(),
            command::UnarchiveChannel { channel_id: c }.into(),
            command::SetStatus { emoji: "palm_tree".into(), text: "away".into(), until: None }.into(),
            command::DeactivateUser { user_id: bob.user_id }.into(),
        ];
        for command in all {
            let name = command.name();
            world.ask(ana, command).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let told = world.told.lock().unwrap().clone();
        assert!(told.len() > 25);
        for event in told {
            let payload: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&event.payload).unwrap();
            for field in payload.keys() {
                assert!(event.kind.fields().contains(&field.as_str()), "{} has {field}", event.kind.as_str());
            }
        }
    }
}
