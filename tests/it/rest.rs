//! REST: refusals, limits, and the papers that describe it.

use std::collections::HashSet;

use colink::domain::command as c;
use colink::domain::error::Code;
use serde_json::{Value, json};

use crate::http::{Answer, Http, escaped};
use crate::socket::Socket;
use crate::world::{Database, PASSWORD, World, eventually, message, nobody, on_both};

// ---- refusals ------------------------------------------------------------------------------------------------------

/// Checks that an answer is a problem of RFC 9457, whole and consistent.
fn is_problem(what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}: {}", answer.text());
    let problem = answer.json();
    assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{what}: {problem}");
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(problem["request_id"], answer.header("x-request-id"), "{what}");
    assert!(problem["title"].is_string() && problem["temporary"].is_boolean(), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    assert!(Code::ALL.iter().any(|known| known.as_str() == code && known.status() == status), "{code} is documented");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_problem_with_a_stable_code() {
    let world = World::with(|config| config.server.max_body_bytes = 100_000).await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let (http, here) = (&ana.http, format!("/v1/channels/{general}"));
    let json = ("content-type", "application/json");
    let deep = format!("{{\"text\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let big = json!({"text": "x".repeat(200_000)}).to_string();
    let messages = format!("{here}/messages");
    for (what, method, path, headers, body, status, code) in [
        ("an unknown URL", "GET", "/v1/nothing", vec![], "", 404, "not_found"),
        ("the root of nothing", "POST", "/v2", vec![], "", 404, "not_found"),
        ("a wrong method", "DELETE", "/v1/channels", vec![], "", 405, "method_not_allowed"),
        ("a wrong method without a path", "PUT", "/health", vec![], "", 405, "method_not_allowed"),
        ("no identifier", "GET", "/v1/channels/general", vec![], "", 400, "invalid_request"),
        ("no number", "GET", &format!("{messages}/one"), vec![], "", 400, "invalid_request"),
        ("a huge number", "GET", &format!("{messages}/99999999999999999999"), vec![], "", 400, "invalid_request"),
        ("a path that is not UTF-8", "GET", "/v1/channels/%ff%fe", vec![], "", 400, "invalid_request"),
        ("a channel that is not there", "GET", &format!("/v1/channels/{}", nobody()), vec![], "", 404, "not_found"),
        ("another type", "POST", &messages, vec![("content-type", "text/plain")], "{}", 415, "unsupported_media_type"),
        (
            "a form",
            "POST",
            &messages,
            vec![("content-type", "application/x-www-form-urlencoded")],
            "text=hi",
            415,
            "unsupported_media_type",
        ),
        ("a body too large", "POST", &messages, vec![json], &big, 413, "too_large"),
        ("no JSON", "POST", &messages, vec![json], "{", 400, "invalid_request"),
        ("a list", "POST", &messages, vec![json], "[1]", 400, "invalid_request"),
        ("deep JSON", "POST", &messages, vec![json], &deep, 400, "invalid_request"),
        ("a missing field", "POST", &messages, vec![json], "{}", 400, "invalid_request"),
        ("an empty text", "POST", &messages, vec![json], r#"{"text":""}"#, 400, "invalid_request"),
        ("a wrong type", "POST", &messages, vec![json], r#"{"text":7}"#, 400, "invalid_request"),
        ("half a surrogate", "POST", &messages, vec![json], r#"{"text":"\ud800"}"#, 400, "invalid_request"),
        (
            "a bad key",
            "POST",
            &messages,
            vec![json, ("idempotency-key", "two words")],
            r#"{"text":"hi"}"#,
            400,
            "invalid_request",
        ),
        (
            "a long key",
            "POST",
            &messages,
            vec![json, ("idempotency-key", &"k".repeat(65))],
            r#"{"text":"hi"}"#,
            400,
            "invalid_request",
        ),
        ("an unknown parameter type", "GET", &format!("{messages}?limit=many"), vec![], "", 400, "invalid_request"),
        ("a query too long", "GET", &format!("{messages}?q={}", "x".repeat(5_000)), vec![], "", 413, "too_large"),
    ] {
        let answer = http.send(method, path, &headers, body.to_owned().into()).await;
        is_problem(what, &answer, status, code);
    }
    let broken = http.send("POST", &messages, &[json], b"{\"text\":\"\xff\"}".to_vec().into()).await;
    is_problem("a body that is not UTF-8", &broken, 400, "invalid_request");
    let stranger = world.stranger().get("/v1/users/me").await;
    is_problem("a stranger", &stranger, 401, "unauthenticated");
    assert_eq!(stranger.header("www-authenticate"), "Bearer");
    let forged = Http::new(&world.url, Some("clk_forged")).get("/v1/users/me").await;
    is_problem("a forged token", &forged, 401, "unauthenticated");
    let outsider = world.user("outsider").await;
    is_problem("no right", &outsider.tries(c::ArchiveChannel { channel_id: general }).await, 403, "forbidden");
    let operator = world.stranger().post("/operator", &json!({})).await;
    is_problem("the operator's door", &operator, 401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_emoji_fits_into_a_url_and_comes_back_by_its_name_if_it_has_one() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let path = format!("/v1/channels/{general}/messages/{}", ana.says(general, "like this").await);
    let kiss = "👩🏽‍❤️‍💋‍👨🏽";
    for (written, kept) in [("1️⃣", "one"), ("#️⃣", "hash"), (kiss, kiss), ("thumbsup", "+1"), (":custom:", "custom")]
    {
        let path_of = |emoji: &str| format!("{path}/reactions/{}", escaped(emoji));
        ana.http.ask("PUT", &path_of(written), &json!({})).await.good();
        let there = ana.http.get(&path).await.good();
        assert_eq!(there["reactions"], json!([{"emoji": kept, "users": [ana.id()]}]), "{written}");
        ana.http.ask("DELETE", &path_of(kept), &json!({})).await.good();
        assert!(ana.http.get(&path).await.good().get("reactions").is_none(), "{written}");
    }
    let refused = ana.http.ask("PUT", &format!("{path}/reactions/{}", escaped("日本語")), &json!({})).await;
    is_problem("no emoji", &refused, 400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_url_is_told_in_a_sentence() {
    let world = World::with(|config| config.metrics.enabled = false).await;
    for path in ["/nope", "/metrics"] {
        assert_eq!(world.stranger().get(path).await.json()["detail"], "there is nothing at this URL", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused_and_the_server_lives() {
    let world = World::with(|config| config.server.max_header_bytes = 8_192).await;
    let ana = world.user("ana").await;
    let (long, many) = ("x".repeat(8_192), (0..150).map(|n| format!("x-{n}")).collect::<Vec<_>>());
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "y")).collect();
    for (what, path, headers, status, code) in [
        ("a long header", "/health", vec![("x-long", long.as_str())], 431, "headers_too_large"),
        ("many headers", "/health", many.clone(), 431, "headers_too_large"),
        ("a long path", &format!("/v1/{}", "x".repeat(3_000)), vec![], 414, "uri_too_long"),
        ("a very long path", &format!("/v1/{}", "x".repeat(20_000)), vec![], 414, "uri_too_long"),
        ("a long query", &format!("/health?{}", "x".repeat(5_000)), vec![], 413, "too_large"),
    ] {
        let answer = ana.http.send("GET", path, &headers, "".into()).await;
        is_problem(what, &answer, status, code);
        let named: Vec<_> = headers.into_iter().chain([("x-request-id", "mine")]).collect();
        let answer = ana.http.send("POST", path, &named, "{}".into()).await;
        assert_eq!((answer.status, answer.header("x-request-id")), (status, "mine"), "{what}");
    }
    assert_eq!(ana.http.send("GET", "/health", &many[..90], "".into()).await.status, 200);
    // What nobody sends by mistake is not even read.
    let request = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(100_000));
    let answer = world.stranger().raw(request.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    for nonsense in ["nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{0}\u{1}\r\n\r\n"] {
        let answer = world.stranger().raw(nonsense.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(world.stranger().get("/health").await.json(), json!({"status": "ok"}));
    let generous = World::with(|config| config.server.max_query_bytes = 0).await;
    let answer = generous.stranger().get(&format!("/health?{}", "x".repeat(8_000))).await;
    assert_eq!(answer.status, 200, "0 is no limit of its own: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_named_by_its_caller_or_by_the_server() {
    let world = World::start().await;
    let stranger = world.stranger();
    let named = |id: &'static str| {
        let stranger = stranger.clone();
        async move {
            stranger.send("GET", "/health", &[("x-request-id", id)], "".into()).await.header("x-request-id").to_owned()
        }
    };
    assert_eq!(named("trace-1.a_B").await, "trace-1.a_B");
    let (one, two) = (named("").await, named("has spaces").await);
    assert!(one.len() == 32 && two.len() == 32 && one != two, "{one} {two}");
    assert_eq!(stranger.get("/health").await.header("x-content-type-options"), "nosniff");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_ignored() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let body = json!({"text": "hi", "from_the_future": {"a": [1, null]}, "channel_id": nobody()});
    let sent = ana.http.post(&format!("/v1/channels/{general}/messages?new=1"), &body).await.good();
    assert_eq!(sent["channel_id"], json!(general), "what the path says goes");
}

// ---- limits --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_much_is_told_when_to_come_back() {
    let world = World::with(|config| {
        (config.limits.requests_per_minute, config.limits.requests_burst) = (60, 3);
        config.gateway.commands_per_minute = 60;
        config.gateway.commands_burst = 2;
    })
    .await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    for _ in 0..3 {
        assert_eq!(ana.http.get("/v1/users/me").await.status, 200);
    }
    let answer = ana.http.get("/v1/users/me").await;
    is_problem("too many", &answer, 429, "rate_limited");
    assert_eq!(answer.header("retry-after"), "1");
    assert!(answer.json()["retry_after"].as_f64().is_some_and(|s| s > 0.0 && s <= 1.0));
    assert_eq!(bob.http.get("/v1/users/me").await.status, 200, "others are not slowed");
    let mut socket = bob.connects().await;
    for _ in 0..2 {
        assert_eq!(socket.call("user.set_status", json!({})).await["ok"], true);
    }
    let refused = socket.call("user.set_status", json!({})).await;
    assert_eq!((&refused["error"], &refused["temporary"]), (&json!("rate_limited"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_how_many_requests_are_left() {
    let world = World::with(|config| {
        (config.limits.requests_per_minute, config.limits.requests_burst) = (6, 3);
    })
    .await;
    let ana = world.user("ana").await;
    let told = |answer: &Answer| -> Vec<Option<u32>> {
        let header = |name| answer.header(name).parse().ok();
        ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(header).to_vec()
    };
    let first = ana.http.get("/v1/users/me").await;
    assert_eq!(told(&first), [Some(3), Some(2), Some(10)]);
    let refused = ana.http.get("/v1/channels/nowhere").await;
    assert_eq!((refused.status, told(&refused)[1]), (400, Some(1)), "refusals count and tell too");
    ana.tries(c::SetStatus { emoji: String::new(), text: "busy".into(), until: None }).await.good();
    let over = ana.http.get("/v1/users/me").await;
    assert_eq!((over.status, told(&over)[1]), (429, Some(0)));
    let reset = told(&over)[2].unwrap();
    assert!((20..=30).contains(&reset), "{reset} s until three are there again, one every 10 s");
    assert_eq!(told(&world.stranger().get("/health").await), [None, None, None], "nobody is counted here");
    let unlimited = World::start().await;
    let bob = unlimited.user("bob").await;
    assert_eq!(told(&bob.http.get("/v1/users/me").await), [None, None, None]);
    let document = world.stranger().get("/v1/openapi.json").await.good();
    assert!(
        document["paths"]["/v1/users/me"]["get"]["responses"]["200"]["headers"]["X-RateLimit-Remaining"].is_object()
    );
}

on_both! {
    what_another_program_has_locked_holds_a_request_only_so_long(database) {
        let mut limits = vec![(200, 0)];
        if database == Database::Postgres {
            limits.push((60_000, 200));
        }
        for (lock_ms, statement_ms) in limits {
            let world = World::on(database, |config| {
                (config.database.lock_timeout_ms, config.database.statement_timeout_ms) = (lock_ms, statement_ms);
            })
            .await;
            let ana = world.user("ana").await;
            let general = world.channel("general", &[&ana]).await;
            let other = locks_messages(&colink::app::store_options(&world.app().hub.config).url).await;
            assert_eq!(ana.tries(message(general, "hi")).await.code(), "unavailable");
            drop(other);
            eventually("the lock to be gone", || async { ana.tries(message(general, "hi")).await.code() == "ok" }).await;
        }
    }
}

/// Locks the messages for writing, in the way of another program.
async fn locks_messages(url: &str) -> Box<dyn Send> {
    use sqlx::{Connection as _, Executor as _};
    if url.starts_with("sqlite") {
        let mut other = sqlx::SqliteConnection::connect(url).await.unwrap();
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        return Box::new(other);
    }
    let mut other = sqlx::PgConnection::connect(url).await.unwrap();
    other.execute("BEGIN").await.unwrap();
    other.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    Box::new(other)
}

#[tokio::test(flavor = "multi_thread")]
async fn posting_signing_in_and_identifying_have_limits_of_their_own() {
    let world = World::with(|config| {
        (config.limits.messages_per_minute, config.limits.messages_burst) = (60, 2);
        config.auth.logins_per_minute = 2;
        config.gateway.identifies_per_minute = 2;
    })
    .await;
    let ana = world.user("ana").await;
    let (general, random) = (world.channel("general", &[&ana]).await, world.channel("random", &[&ana]).await);
    for code in ["ok", "ok", "rate_limited"] {
        assert_eq!(ana.tries(message(general, "hi")).await.code(), code);
    }
    assert_eq!(ana.tries(message(random, "hi")).await.code(), "ok", "each channel by itself");
    let login = json!({"name": "ana", "password": "wrong password"});
    for code in ["unauthenticated", "unauthenticated", "rate_limited"] {
        assert_eq!(world.stranger().post("/v1/auth/login", &login).await.code(), code);
    }
    let (_one, _two) = (ana.connects().await, ana.connects().await);
    let mut third = ana.opens().await;
    third.send(&json!({"id": 1, "type": "identify", "d": {"token": ana.token}})).await;
    let refused = third.next().await;
    assert_eq!((&refused["reply_to"], &refused["error"]), (&json!(1), &json!("rate_limited")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_signs_in_pages_of_this_origin_alone() {
    let world = World::start().await;
    world.user("ana").await;
    let stranger = world.stranger();
    let login = json!({"name": "ana", "password": PASSWORD, "cookie": true});
    let answer = stranger.post("/v1/auth/login", &login).await;
    let cookie = answer.header("set-cookie").to_owned();
    assert!(cookie.starts_with("colink_session=clk_"), "{cookie}");
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    // No page's request comes without an Origin, unless it only reads: what has none is a program.
    let mut program = Socket::open(&world.url, &[("cookie", &cookie)]).await;
    assert_eq!(program.next().await["type"], "hello");
    program.send(&json!({"type": "identify", "d": {}})).await;
    assert_eq!(program.next().await["type"], "ready");
    let (own, evil) = (Some(world.url.as_str()), Some("https://evil.example"));
    for (method, path, origin, status) in [
        ("GET", "/v1/users/me", None, 200),
        ("GET", "/v1/users/me", evil, 200),
        ("PUT", "/v1/users/me/status", None, 200),
        ("PUT", "/v1/users/me/status", own, 200),
        ("PUT", "/v1/users/me/status", evil, 403),
        ("PUT", "/v1/users/me/status", Some("null"), 403),
        ("POST", "/v1/auth/logout", evil, 403),
        ("POST", "/v1/auth/logout", own, 200),
        ("GET", "/v1/users/me", own, 401),
        ("PUT", "/v1/users/me/status", None, 401),
    ] {
        let headers = [("cookie", cookie.as_str())].into_iter().chain(origin.map(|origin| ("origin", origin)));
        let answer = stranger.send(method, path, &headers.collect::<Vec<_>>(), "".into()).await;
        assert_eq!(answer.status, status, "{method} {path} from {origin:?}: {}", answer.text());
    }
    let headers = [("origin", "https://evil.example"), ("content-type", "application/json")];
    let answer = stranger.send("POST", "/v1/auth/login", &headers, login.to_string().into()).await;
    assert_eq!(answer.code(), "forbidden", "another site's page does not sign anybody in");
    let token = Http::new(&world.url, None);
    let answer = token.send("GET", "/v1/users/me?access_token=x", &[], "".into()).await;
    assert_eq!(answer.status, 401, "a token in the URL is none");
}

// ---- papers --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_describes_what_is_there() {
    let world = World::start().await;
    let document = world.stranger().get("/v1/openapi.json").await.good();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    check_refs(&document, &document);
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(
        paths.values().map(|methods| methods.as_object().unwrap().len()).sum::<usize>(),
        colink::http::endpoints().len()
    );
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(operation["operationId"].is_string() && operation["summary"].is_string(), "{what}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.keys().any(|status| status.starts_with('2')) && responses.contains_key("default"),
                "{what}"
            );
            let in_path: HashSet<&str> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            let described: HashSet<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|p| p["in"] == "path")
                .map(|p| p["name"].as_str().unwrap())
                .collect();
            assert_eq!(in_path, described, "{what}");
            // Whatever the document says needs a token does.
            let url: String = path
                .split('/')
                .map(|part| if part.starts_with('{') { "x" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let answer = world.stranger().ask(&method.to_uppercase(), &url, &json!({})).await;
            assert_eq!(answer.status == 401, operation.get("security").is_none(), "{what}: {}", answer.text());
        }
    }
    let answer = |path: &str| &document["paths"][path]["get"]["responses"]["200"]["content"];
    assert!(answer("/v1/events/stream")["text/event-stream"].is_object(), "not everything is JSON");
    let gateway = world.stranger().get("/v1/gateway").await.good();
    let described = document.pointer("/components/schemas/Gateway/properties").unwrap();
    assert!(gateway.as_object().unwrap().keys().eq(described.as_object().unwrap().keys()), "{described}");
    let page = world.stranger().get("/v1/docs").await;
    assert!(page.header("content-type").starts_with("text/html") && page.text().contains("openapi.json"));
    assert!(!page.text().contains("src=\"http"), "the page needs no other server");
}

fn check_refs(document: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get("$ref") {
                let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{target} is elsewhere"));
                assert!(document.pointer(pointer).is_some(), "{target} is not there");
            }
            fields.values().for_each(|value| check_refs(document, value));
        }
        Value::Array(items) => items.iter().for_each(|value| check_refs(document, value)),
        _ => {}
    }
}
