//! `docker-compose.yml` and `deploy/`, held to the code and to each other, without any tool. `deploy/check` does what needs
//! tools: schemas, Prometheus' own checks.

use std::collections::BTreeSet;

use colink::app::BEYOND_DRAIN;
use colink::config::{Config, Network};

const COMPOSE: &str = include_str!("../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../deploy/Dockerfile");
const MAKE_ENV: &str = include_str!("../deploy/make-env");
const TRAEFIK: &str = include_str!("../deploy/traefik/dynamic/colink.yml");
const TRAEFIK_PORTS: &str = include_str!("../deploy/traefik/traefik.yml");
const TRAEFIK_GRAFANA: &str = include_str!("../deploy/traefik/dynamic/grafana.yml");
const PROMETHEUS: &str = include_str!("../deploy/prometheus/prometheus.yml");
const RULES: &str = include_str!("../deploy/prometheus/rules.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana/dashboards/colink.json");
const OPERATIONS: &str = include_str!("../docs/OPERATIONS.md");

/// Returns the words of a text that begin with `start`.
fn words<'a>(text: &'a str, start: &str) -> BTreeSet<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !inside(c)).filter(|word| word.starts_with(start)).collect()
}

/// Returns what stands behind the first `before` in a text, up to the end of the line.
fn after<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("there is no `{before}`"));
    rest.lines().next().unwrap_or_default().trim()
}

/// Returns the number that a text begins with.
fn number(text: &str) -> u64 {
    let digits: String = text.trim_matches('"').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("`{text}` begins with no number"))
}

#[test]
fn every_variable_of_a_hub_names_a_key() {
    let config: toml::Table = include_str!("../config.toml").parse().expect("config.toml is TOML");
    for variable in words(COMPOSE, "COLINK_").union(&words(DOCKERFILE, "COLINK_")) {
        let name = variable.trim_start_matches("COLINK_").to_ascii_lowercase();
        // What the comment calls any of them.
        if name == "section__key" {
            continue;
        }
        let (section, key) = name.split_once("__").unwrap_or_else(|| panic!("{variable} names no section"));
        let there = config.get(section).is_some_and(|keys| keys.get(key).is_some());
        assert!(there, "{variable}: config.toml has no `{section}.{key}`");
    }
}

#[test]
fn every_variable_of_the_compose_file_is_made_or_has_a_default() {
    let mut asked = BTreeSet::new();
    for rest in COMPOSE.split("${").skip(1) {
        let inner = rest.split('}').next().unwrap_or_default();
        let (name, other) = inner.split_once(':').unwrap_or_else(|| panic!("${{{inner}}} may be empty"));
        assert!(other.starts_with('-') || other == "?run deploy/make-env first", "${{{inner}}}");
        asked.insert(name);
    }
    let made: BTreeSet<&str> = MAKE_ENV
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect();
    assert_eq!(asked, made, "docker-compose.yml on the left, deploy/make-env on the right");
}

#[test]
fn every_image_has_a_version() {
    let images: Vec<&str> = COMPOSE.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert!(images.len() > 10, "{images:?}");
    for image in images {
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        assert!(tag.contains(|c: char| c.is_ascii_digit()), "{image}");
    }
    assert_eq!(after(COMPOSE, "image: colink:"), env!("CARGO_PKG_VERSION"));
    assert_eq!(after(DOCKERFILE, "FROM rust:").split('-').next(), Some(env!("CARGO_PKG_RUST_VERSION")));
}

#[test]
fn the_compose_file_and_the_image_agree_on_who_runs_the_hub() {
    let user = after(DOCKERFILE, "USER ");
    let (uid, gid) = user.split_once(':').expect("a user and a group");
    assert_ne!(number(uid), 0);
    assert_eq!(after(COMPOSE, "user: ").trim_matches('"'), user);
    assert!(COMPOSE.contains(&format!("/data:uid={uid},gid={gid},mode=0700")));
    assert!(DOCKERFILE.contains(&format!("--chown={user} /data /data")));
}

#[test]
fn every_hub_is_behind_traefik_and_watched() {
    let hubs: Vec<&str> =
        COMPOSE.lines().filter(|line| line.contains("<<: *hub,")).map(|line| after(line, "hostname: ")).collect();
    assert_eq!(hubs.len(), 3);
    for hub in hubs {
        let hub = hub.trim_end_matches([' ', '}']);
        assert!(TRAEFIK.contains(&format!("\"http://{hub}:8080\"")), "{hub}");
        assert!(PROMETHEUS.contains(&format!("\"{hub}:8080\"")), "{hub}");
    }
    let trusted: Vec<Network> =
        serde_json::from_str(after(COMPOSE, "TRUSTED_PROXIES: ").trim_matches('\'')).expect("a list");
    let traefik = after(COMPOSE, "ipv4_address: ").trim_end_matches([' ', '}']);
    assert_eq!(trusted.iter().map(Network::to_string).collect::<Vec<_>>(), [format!("{traefik}/32")]);
}

#[test]
fn grafana_is_not_where_the_hubs_are_published() {
    let ports = TRAEFIK.matches("entryPoints: [web]").count() + TRAEFIK.matches("entryPoints: [websecure]").count();
    assert_eq!((ports, TRAEFIK.matches("entryPoints:").count()), (2, 2));
    assert_eq!(TRAEFIK_GRAFANA.matches("entryPoints:").count(), 1);
    assert_eq!(after(TRAEFIK_GRAFANA, "entryPoints: "), "[grafana]");
    let (_, entry) = TRAEFIK_PORTS.split_once("\n  grafana:\n").expect("it has an entry point");
    let port = number(after(entry, "address: ").trim_matches('"').trim_start_matches(':'));
    assert!(COMPOSE.contains(&format!("${{GRAFANA_LISTEN:-127.0.0.1:{port}}}:{port}\"")), "{port}");
    assert!(MAKE_ENV.contains(&format!("\nGRAFANA_LISTEN=127.0.0.1:{port}\n")), "{port}");
}

#[test]
fn a_hub_is_given_time_to_stop_and_closes_no_connection_that_traefik_would_use() {
    let grace = number(after(COMPOSE, "stop_grace_period: "));
    let drain = number(after(COMPOSE, "COLINK_SERVER__DRAIN_S: "));
    let stops_within = |drain: u64| drain + BEYOND_DRAIN.as_secs();
    assert!(grace > stops_within(drain), "{grace} s for {drain} s");
    let stops_within = stops_within(Config::default().server.drain_s);
    assert!(stops_within < 30, "{stops_within} s");
    assert!(OPERATIONS.contains(&format!("({stops_within} s by default)")), "{stops_within} s");
    assert!(number(after(OPERATIONS, "TimeoutStopSec=")) > stops_within);
    let idle = number(after(TRAEFIK, "idleConnTimeout: "));
    assert!(idle * 1_000 < Config::default().server.header_timeout_ms, "{idle} s");
}

#[test]
fn every_metric_that_is_watched_or_drawn_is_counted() {
    let told: BTreeSet<&str> = OPERATIONS
        .lines()
        .filter_map(|line| line.strip_prefix("| `colink_"))
        .map(|rest| rest.split(['`', '{']).next().unwrap_or_default())
        .collect();
    for text in [RULES, DASHBOARD] {
        let named = words(text, "colink_");
        assert!(!named.is_empty());
        for word in named {
            let name = word.trim_start_matches("colink_");
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            assert!(told.contains(name) || told.contains(whole), "docs/OPERATIONS.md does not tell of {word}");
        }
    }
}
