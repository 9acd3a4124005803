//! What the log keeps, and what each event says.

use super::*;

on_both! {
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
