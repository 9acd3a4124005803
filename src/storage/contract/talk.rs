//! What becomes of messages: their numbers, pages, keys, threads, reactions and unread counts.

use super::*;

everywhere! {
    messages_of_many_channels_are_numbered_densely(world) {
        let ana = world.user("ana", Role::Member).await;
        let mut rooms = Vec::new();
        for n in 0..4 {
            rooms.push(world.channel(ana, &format!("room-{n}"), &[]).await);
        }
        let mut waiting = Vec::new();
        for n in 0..200 {
            let (writer, send) = (world.writer.clone(), says(rooms[n % 4], &format!("text {n}"), None));
            waiting.push(tokio::spawn(async move { writer.write(ana, Work::Command(send.into()), None).await }));
        }
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        for room in rooms {
            let log = world.log(room).await;
            let seqs: Vec<i64> = log.iter().map(|e| e.seq).collect();
            assert_eq!(seqs, (1..=51).collect::<Vec<_>>());
            let mut db = world.store.read().await.unwrap();
            let (found, more) = page(&mut db, None, room, Page::Newest, 100).await.unwrap();
            let numbers: Vec<i64> = found.iter().map(|m| m.message_no.unwrap()).collect();
            assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
            assert!(!more);
            let told: Vec<i64> =
                world.told.lock().unwrap().iter().filter(|e| e.stream == room.into()).map(|e| e.seq).collect();
            assert_eq!(told, seqs, "events are told in order, each once");
        }
    }

    a_page_of_long_messages_is_short_and_the_next_one_goes_on(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let longest = "x".repeat(TEXT_MAX);
        for _ in 0..60 {
            world.ask(ana, says(room, &longest, None)).await.unwrap();
        }
        // One connection for all of it: what was not read of one page does not get into the next.
        let mut db = world.store.read().await.unwrap();
        let fit = PAGE_BYTES / TEXT_MAX;
        let (newest, more) = page(&mut db, None, room, Page::Newest, 200).await.unwrap();
        assert_eq!((newest.len(), newest.last().unwrap().seq, more), (fit, 61, true));
        let (before, more) = page(&mut db, None, room, Page::Before(newest[0].seq), 200).await.unwrap();
        assert_eq!((before.len(), before.last().unwrap().seq, more), (fit, newest[0].seq - 1, true));
        let (rest, more) = page(&mut db, None, room, Page::Before(before[0].seq), 200).await.unwrap();
        assert_eq!((rest.len(), rest[0].seq, more), (60 - 2 * fit, 2, false));
        let log = events::after(&mut db, room.into(), 1, 1_000).await.unwrap();
        let (first, last) = (log.first().unwrap().seq, log.last().unwrap().seq);
        assert_eq!((first, last), (2, log.len() as i64 + 1));
        assert!(log.len() <= fit && log.len() + 2 >= fit, "{} events", log.len());
        assert_eq!(events::after(&mut db, room.into(), last, 1_000).await.unwrap()[0].seq, last + 1);
    }

    a_pin_that_is_there_needs_no_room(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let pin = |seq| command::AddPin { channel_id: room, seq };
        for n in 0..200 {
            let sent: Sent = world.get(ana, says(room, &format!("text {n}"), None)).await;
            world.ask(ana, pin(sent.seq)).await.unwrap();
        }
        assert_eq!(world.ask(ana, pin(2)).await.unwrap().json, "{}");
        let sent: Sent = world.get(ana, says(room, "one too many", None)).await;
        assert_eq!(world.ask(ana, pin(sent.seq)).await.unwrap_err().code, Code::Conflict);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(messages::pinned(&mut db, room, None, 200).await.unwrap().0.len(), 200);
    }

    a_repeated_key_is_stored_once_and_bound_to_its_body(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let first: Sent = world.get(ana, says(room, "hi", Some("k1"))).await;
        assert!(!first.duplicate);
        let again: Sent = world.get(ana, says(room, "hi", Some("k1"))).await;
        assert_eq!((again.seq, again.message_id, again.duplicate), (first.seq, first.message_id, true));
        let other = world.ask(ana, says(room, "something else", Some("k1"))).await.unwrap_err();
        assert_eq!(other.code, Code::KeyReused);
        let both = tokio::join!(world.ask(ana, says(room, "x", Some("k2"))), world.ask(ana, says(room, "x", Some("k2"))));
        let both = [both.0.unwrap(), both.1.unwrap()];
        assert_eq!(both.iter().filter(|r| r.duplicate).count(), 1);
        assert_eq!(world.log(room).await.len(), 3);
    }

    a_key_that_was_refused_is_free_for_another_message(world) {
        let (ana, eve) = (world.user("ana", Role::Member).await, world.user("eve", Role::Member).await);
        let (room, others) = (world.channel(ana, "room", &[]).await, world.channel(eve, "others", &[]).await);
        let post = |channel, text, key| world.ask(ana, says(channel, text, key));
        // The second and third wait for the first, and go together.
        let (_, refused, stored) =
            tokio::join!(post(room, "one", None), post(others, "two", Some("k")), post(room, "three", Some("k")));
        assert_eq!(refused.unwrap_err().code, Code::Forbidden);
        assert!(!stored.unwrap().duplicate);
    }

    a_refused_item_does_not_disturb_its_neighbours(world) {
        let ana = world.user("ana", Role::Member).await;
        let eve = world.user("eve", Role::Guest).await;
        let room = world.channel(ana, "room", &[]).await;
        let rename = command::UpdateChannel {
            channel_id: room, name: Some("not a name".into()), topic: None, purpose: None, posting: None,
        };
        let (a, b, c, d, e) = tokio::join!(
            world.ask(ana, says(room, "one", None)),
            world.ask(eve, says(room, "I am not in", None)),
            world.ask(ana, rename),
            world.ask(ana, command::AddReaction { channel_id: room, seq: 99, emoji: "+1".into() }),
            world.ask(ana, says(room, "two", None)),
        );
        assert!(a.is_ok() && e.is_ok());
        assert_eq!(b.unwrap_err().code, Code::NotFound);
        assert_eq!(c.unwrap_err().code, Code::Invalid);
        assert_eq!(d.unwrap_err().code, Code::NotFound);
        assert_eq!(world.log(room).await.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
    }

    unread_and_mentions_are_arithmetic(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        world.ask(ana, says(room, "hello @bob", None)).await.unwrap();
        world.ask(ana, says(room, "nobody", None)).await.unwrap();
        let third: Sent = world.get(ana, says(room, "@channel", None)).await;
        let (a, b) = (world.membership(ana, room).await, world.membership(bob, room).await);
        assert_eq!((a.unread_count, a.mention_count), (0, 0), "whoever writes has read");
        assert_eq!((b.unread_count, b.mention_count), (3, 2));
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: third.seq - 1 }).await;
        assert_eq!((read.unread_count, read.mention_count), (1, 1));
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: 1 }).await;
        assert_eq!(read.unread_count, 1, "reading never moves backwards");
        let read: Membership = world.get(bob, command::MarkUnread { channel_id: room, seq: 2 }).await;
        assert_eq!((read.unread_count, read.mention_count), (3, 2));
        let reply = command::SendMessage { thread_seq: Some(2), ..says(room, "a reply", None) };
        let reply: Sent = world.get(ana, reply).await;
        world.ask(ana, says(room, "behind it", None)).await.unwrap();
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: reply.seq }).await;
        assert_eq!((read.unread_count, read.mention_count), (1, 0), "a mark may stand at a reply");
    }

    threads_count_their_own_replies(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let mut reply = says(room, "reply @ana", None);
        reply.thread_seq = Some(root.seq);
        world.ask(bob, reply.clone()).await.unwrap();
        reply.also_in_channel = true;
        let second: Sent = world.get(bob, reply).await;
        let mut db = world.store.read().await.unwrap();
        let (replies, _) = page(&mut db, Some(root.seq), room, Page::After(0), 10).await.unwrap();
        assert_eq!(replies.iter().map(|m| m.reply_no).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let (top, _) = page(&mut db, None, room, Page::Newest, 10).await.unwrap();
        assert_eq!(top.iter().map(|m| m.seq).collect::<Vec<_>>(), [root.seq, second.seq]);
        assert_eq!(top[0].reply_count, 2);
        let threads = personal::followed(&mut db, ana.user_id, None, 10).await.unwrap();
        assert_eq!(threads[0].unread_count, 2, "who started a thread follows it");
        assert_eq!(threads[0].read_seq, root.seq);
        let threads = personal::followed(&mut db, bob.user_id, None, 10).await.unwrap();
        assert_eq!((threads[0].unread_count, threads[0].read_seq), (0, second.seq), "who replies has read up to there");
        drop(db);
        world.ask(ana, command::MarkThreadRead { channel_id: room, thread_seq: root.seq, seq: second.seq - 1 }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        assert_eq!(personal::followed(&mut db, ana.user_id, None, 10).await.unwrap()[0].unread_count, 1);
    }

    a_thread_can_be_read_and_left_when_its_first_message_is_gone(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let (channel_id, thread_seq) = (room, root.seq);
        let reply: Sent =
            world.get(bob, command::SendMessage { thread_seq: Some(thread_seq), ..says(room, "re", None) }).await;
        world.ask(ana, command::DeleteMessage { channel_id, seq: thread_seq }).await.unwrap();
        let threads = async || {
            let mut db = world.store.read().await.unwrap();
            let threads = personal::followed(&mut db, ana.user_id, None, 10).await.unwrap();
            threads.iter().map(|thread| thread.unread_count).collect::<Vec<_>>()
        };
        assert_eq!(threads().await, [1]);
        world.ask(ana, command::MarkThreadRead { channel_id, thread_seq, seq: reply.seq }).await.unwrap();
        assert_eq!(threads().await, [0]);
        world.ask(ana, command::UnfollowThread { channel_id, thread_seq }).await.unwrap();
        assert!(threads().await.is_empty());
        world.ask(ana, command::FollowThread { channel_id, thread_seq }).await.unwrap();
        assert_eq!(threads().await, [0]);
    }

    an_emoji_is_one_reaction_however_it_is_written(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let sent: Sent = world.get(ana, says(room, "like this", None)).await;
        let (channel_id, seq) = (room, sent.seq);
        let reactions = async || {
            let mut db = world.store.read().await.unwrap();
            let message = messages::one(&mut db, room, seq).await.unwrap().unwrap();
            message.reactions.into_iter().map(|reaction| reaction.emoji).collect::<Vec<_>>()
        };
        for written in ["👍", "thumbsup", ":+1:", "👍🏽"] {
            world.ask(ana, command::AddReaction { channel_id, seq, emoji: written.into() }).await.unwrap();
        }
        assert_eq!(reactions().await, ["+1", "👍🏽"]);
        world.ask(ana, command::RemoveReaction { channel_id, seq, emoji: "👍\u{fe0f}".into() }).await.unwrap();
        assert_eq!(reactions().await, ["👍🏽"]);
        let told: Vec<Event> = world.log(room).await.into_iter().filter(|e| e.kind == EventKind::ReactionRemoved).collect();
        assert!(told.len() == 1 && told[0].payload.contains(r#""emoji":"+1""#), "{told:?}");
    }

    a_page_has_all_reactions_on_its_messages(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let react = async |seq: i64, emoji: &str| {
            world.ask(ana, command::AddReaction { channel_id: room, seq, emoji: emoji.into() }).await.unwrap();
        };
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let reply = command::SendMessage { thread_seq: Some(root.seq), ..says(room, "much liked", None) };
        let reply: Sent = world.get(ana, reply).await;
        let newest: Sent = world.get(ana, says(room, "newest", None)).await;
        react(root.seq, "eyes").await;
        react(newest.seq, "wave").await;
        react(newest.seq, "+1").await;
        let (known, new) = ("wave", "eyes");
        let mut db = world.store.read().await.unwrap();
        assert_eq!(messages::emoji_on(&mut db, room, newest.seq, known).await.unwrap(), (2, true));
        assert_eq!(messages::emoji_on(&mut db, room, newest.seq, new).await.unwrap(), (2, false));
        assert_eq!(messages::emoji_on(&mut db, room, reply.seq, new).await.unwrap(), (0, false));
        drop(db);
        let likes = "INSERT INTO reactions (channel_id, seq, emoji, user_id, created_at) \
            WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000) \
            SELECT $1, $2, 'e' || n, $3, $4 FROM n";
        let (mut apart, now) = (world.apart().await, world.clock.now());
        on!(&mut apart, c => { sqlx::query(likes).bind(room).bind(reply.seq).bind(ana.user_id).bind(now).execute(c).await.unwrap(); });

        let mut db = world.store.read().await.unwrap();
        let (found, _) = page(&mut db, None, room, Page::Newest, 10).await.unwrap();
        let on = |message: &Message| message.reactions.iter().map(|r| r.emoji.clone()).collect::<Vec<_>>();
        assert_eq!(found.iter().map(on).collect::<Vec<_>>(), [vec!["eyes"], vec!["+1", "wave"]]);
        assert_eq!(messages::one(&mut db, room, reply.seq).await.unwrap().unwrap().reactions.len(), 10_000);
        drop(db);

        // What is much liked is long.
        let likes = likes.replace("n < 10000", "n < 30000");
        on!(&mut apart, c => { sqlx::query(sqlx::AssertSqlSafe(likes)).bind(room).bind(newest.seq).bind(ana.user_id).bind(now)
            .execute(c).await.unwrap(); });
        let mut db = world.store.read().await.unwrap();
        let (found, more) = page(&mut db, None, room, Page::Newest, 10).await.unwrap();
        assert_eq!((found.len(), found[0].reactions.len(), more), (1, 30_002, true));
        let (found, more) = page(&mut db, None, room, Page::Before(newest.seq), 10).await.unwrap();
        assert_eq!((found.len(), more), (1, false));
    }

    an_edit_keeps_the_earlier_text_and_a_deletion_forgets_all(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let sent: Sent = world.get(ana, says(room, "first secret", None)).await;
        world.ask(ana, command::EditMessage { channel_id: room, seq: sent.seq, text: "second secret".into() }).await.unwrap();
        world.ask(ana, command::AddReaction { channel_id: room, seq: sent.seq, emoji: "eyes".into() }).await.unwrap();
        world.ask(ana, command::AddPin { channel_id: room, seq: sent.seq }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        let message = messages::one(&mut db, room, sent.seq).await.unwrap().unwrap();
        assert_eq!((message.text.as_str(), message.pinned, message.reactions.len()), ("second secret", true, 1));
        assert_eq!(messages::edits(&mut db, room, sent.seq, 0, 10).await.unwrap().0[0].text, "first secret");
        drop(db);
        world.ask(ana, command::DeleteMessage { channel_id: room, seq: sent.seq }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        let message = messages::one(&mut db, room, sent.seq).await.unwrap().unwrap();
        assert!(message.text.is_empty() && message.deleted_at.is_some() && message.reactions.is_empty());
        assert!(messages::edits(&mut db, room, sent.seq, 0, 10).await.unwrap().0.is_empty());
        drop(db);
        for event in world.log(room).await {
            assert!(!event.payload.contains("secret"), "{}", event.payload);
        }
    }
}
