//! Who is typing: told to who may hear it, not too often, and never kept.

use std::time::Duration;

use serde_json::json;

use crate::world::{Database, World, standing_clock};

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_typing_is_told_of_twice_in_the_time_that_a_notice_lasts() {
    let clock = standing_clock();
    let world = World::at(Database::Sqlite, clock.clone(), |config| config.presence.typing_ms = 5_000).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let thread = ana.says(general, "a thread").await;
    let (mut keyboard, mut screen) = (ana.connects().await, bob.connects().await);
    let (here, there) = (json!({"channel_id": general}), json!({"channel_id": general, "thread_seq": thread}));
    for _ in 0..2 {
        assert_eq!(keyboard.call("typing.start", here.clone()).await["ok"], true);
        let told = screen.until("typing").await;
        assert_eq!((&told["channel_id"], &told["d"]), (&json!(general), &json!({"user_id": ana.id()})));
        clock.advance(Duration::from_millis(2_499));
        for _ in 0..3 {
            assert_eq!(keyboard.call("typing.start", here.clone()).await["ok"], true, "told or not");
        }
        // The channel does one thing after the other: with this, whatever it had to tell is told.
        ana.says(general, "still thinking").await;
        screen.heard_no("typing").await;
        clock.advance(Duration::from_millis(1));
    }
    assert_eq!(keyboard.call("typing.start", there).await["ok"], true);
    assert_eq!(screen.until("typing").await["d"]["thread_seq"], thread);
    keyboard.heard_no("typing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_who_is_typing_where_notices_are_switched_off() {
    let world = World::with(|config| config.presence.typing_ms = 0).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let (mut keyboard, mut screen) = (ana.connects().await, bob.connects().await);
    assert_eq!(keyboard.call("typing.start", json!({"channel_id": general})).await["ok"], true);
    ana.says(general, "there").await;
    screen.heard_no("typing").await;
}
