//! Puts the configuration together, layer by layer, and collects everything that is wrong on the way.
//!
//! The layers, each over the one before:
//! 1. the defaults, whose table is the schema: it tells which keys there are and what type each has;
//! 2. a file: `--config FILE`, else `COLINK_CONFIG`, else `config.toml` in the working directory if there is one;
//! 3. the environment: `COLINK_SECTION__KEY`, and for a secret `COLINK_SECTION__KEY_FILE`, the file to read it from;
//! 4. `--set section.key=value`.
//!
//! A value of the environment or of `--set` is read as TOML if that gives the type of the key, else as bare text. Errors
//! name the source and never show a secret; nor do they quote lines of the file, which may hold one.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::Config;

/// The keys that may be read from a file of their own.
const SECRETS: &[&str] = &["database.url", "database.replica_url", "cluster.redis"];
/// Variables that belong to the command line and the tests.
const OTHERS: &[&str] = &["COLINK_CONFIG", "COLINK_TOKEN", "COLINK_PASSWORD", "COLINK_URL"];

/// Where a configuration comes from, besides the defaults. It may hold secrets, and so cannot be printed.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file given by `--config`.
    pub file: Option<PathBuf>,
    /// The environment; what does not begin with `COLINK_` is ignored.
    pub env: Vec<(String, String)>,
    /// Each `section.key=value` given by `--set`, in order.
    pub set: Vec<String>,
}

impl Sources {
    /// Returns the sources of this process: what the command line gave, and the environment's `COLINK_` variables.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, set: Vec<String>) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with("COLINK_"))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect();
        Sources { file, env, set }
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Loads the configuration; see [`Config::load`].
pub(super) fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let mut loader = Loader {
        schema: Table::try_from(Config::default()).expect("the defaults are made of TOML's own types"),
        values: Table::new(),
        origins: BTreeMap::new(),
        errors: Vec::new(),
    };
    loader.read_file(sources);
    loader.read_env(&sources.env);
    loader.read_set(&sources.set);
    loader.finish()
}

struct Loader {
    schema: Table,
    /// What was given and is of the right type.
    values: Table,
    /// The last source of each key.
    origins: BTreeMap<String, String>,
    errors: Vec<String>,
}

impl Loader {
    fn read_file(&mut self, sources: &Sources) {
        let variable = sources.env.iter().find(|(name, value)| name == "COLINK_CONFIG" && !value.is_empty());
        let usual = Path::new("config.toml");
        let path = match (&sources.file, variable) {
            (Some(path), _) => path.as_path(),
            (None, Some((_, path))) => Path::new(path),
            (None, None) if usual.exists() => usual,
            (None, None) => return,
        };
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_toml(&path.display().to_string(), &text),
            Err(error) => self.errors.push(format!("cannot read {}: {error}", path.display())),
        }
    }

    fn read_toml(&mut self, source: &str, text: &str) {
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start).min(text.len());
                let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
                // Not the error's own text: it quotes the line.
                return self.refuse(source, &format!("line {line}: {}", error.message()));
            }
        };
        for (section, value) in table {
            match value {
                Value::Table(keys) if self.schema.contains_key(&section) => {
                    for (key, value) in keys {
                        self.put(source, &format!("{section}.{key}"), value);
                    }
                }
                Value::Table(_) => self.unknown_section(source, &section),
                _ if self.schema.contains_key(&section) => {
                    self.refuse(source, &format!("`{section}` must be a section, as in [{section}]"));
                }
                _ => self.unknown_key(source, &section),
            }
        }
    }

    fn read_env(&mut self, env: &[(String, String)]) {
        let mut variables: Vec<_> = env.iter().filter(|(name, _)| !OTHERS.contains(&name.as_str())).collect();
        variables.sort();
        for (name, text) in &variables {
            let Some(rest) = name.strip_prefix("COLINK_").filter(|rest| !rest.starts_with("TEST_")) else { continue };
            let Some((section, key)) = rest.split_once("__") else {
                self.doubt(name, rest);
                continue;
            };
            let key = format!("{section}.{key}").to_ascii_lowercase();
            match key.strip_suffix("_file").filter(|key| self.find(key).is_some()) {
                None => self.put_text(name, &key, text),
                Some(key) if !SECRETS.contains(&key) => {
                    self.refuse(name, &format!("`{key}` is not a secret and cannot be read from a file"));
                }
                Some(_)
                    if variables.iter().any(|(n, text)| name.strip_suffix("_FILE") == Some(n) && !text.is_empty()) =>
                {
                    self.refuse(name, "it is set without _FILE, too");
                }
                Some(key) => match std::fs::read_to_string(text) {
                    Ok(secret) => self.put(name, key, Value::String(secret.trim_end_matches(['\r', '\n']).to_owned())),
                    Err(error) => self.refuse(name, &format!("cannot read {text}: {error}")),
                },
            }
        }
    }

    /// Refuses a variable that has one underscore too few. Others are not Colink's: Kubernetes, for one, sets
    /// `COLINK_SERVICE_HOST` and the like beside a service of that name.
    fn doubt(&mut self, name: &str, rest: &str) {
        let meant = self.keys().find(|key| key.replace('.', "_").eq_ignore_ascii_case(rest));
        if let Some(key) = meant {
            let right = key.replace('.', "__").to_ascii_uppercase();
            self.refuse(name, &format!("unknown variable: did you mean `COLINK_{right}`?"));
        }
    }

    fn read_set(&mut self, set: &[String]) {
        for argument in set {
            match argument.split_once('=') {
                Some((key, text)) => self.put_text(&format!("--set {key}"), key.trim(), text.trim()),
                None => self.refuse(&format!("--set {argument}"), "it is not like section.key=value"),
            }
        }
    }

    fn put_text(&mut self, source: &str, key: &str, text: &str) {
        let value = match (text.parse::<Value>(), self.find(key)) {
            (Ok(value), Some(default)) if value.same_type(default) => value,
            _ => Value::String(text.to_owned()),
        };
        self.put(source, key, value);
    }

    /// Takes a value over the one before, if there is such a key and the value is of its type.
    fn put(&mut self, source: &str, key: &str, value: Value) {
        let Some((section, name)) = key.split_once('.') else { return self.unknown_key(source, key) };
        if !self.schema.contains_key(section) {
            return self.unknown_section(source, section);
        }
        let Some(default) = self.find(key) else { return self.unknown_key(source, key) };
        if !value.same_type(default) {
            let (wanted, given) = (type_name(default), shown(key, &value));
            return self.refuse(source, &format!("`{key}` must be {wanted}, not {given}"));
        }
        // Alone over the defaults, so that what the type is too wide for is found here, where the source is known.
        let alone = Table::from_iter([(name.to_owned(), value.clone())]);
        if let Err(error) = Config::deserialize(Table::from_iter([(section.to_owned(), Value::Table(alone))])) {
            let reason = match value {
                Value::Integer(number) => format!("`{key}` is out of range: {number}"),
                _ => format!("`{key}`: {}", error.message()),
            };
            return self.refuse(source, &reason);
        }
        let keys = self.values.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(keys) = keys {
            keys.insert(name.to_owned(), value);
        }
        self.origins.insert(key.to_owned(), source.to_owned());
    }

    fn finish(mut self) -> Result<Config, ConfigErrors> {
        match Config::deserialize(std::mem::take(&mut self.values)) {
            Ok(config) => {
                for problem in config.problems() {
                    let origin = problem.keys.iter().find_map(|key| self.origins.get(*key)).cloned();
                    self.refuse(origin.as_deref().unwrap_or("the defaults"), &problem.text);
                }
                if self.errors.is_empty() {
                    return Ok(config);
                }
            }
            Err(error) => self.refuse("the configuration", error.message()),
        }
        Err(ConfigErrors(self.errors))
    }

    fn refuse(&mut self, source: &str, reason: &str) {
        self.errors.push(format!("cannot use {source}: {reason}"));
    }

    fn unknown_section(&mut self, source: &str, section: &str) {
        let meant = nearest(section, self.schema.keys().map(String::as_str));
        let hint = meant.map_or(String::new(), |meant| format!(": did you mean `{meant}`?"));
        self.refuse(source, &format!("unknown section `{section}`{hint}"));
    }

    fn unknown_key(&mut self, source: &str, key: &str) {
        let keys: Vec<_> = self.keys().collect();
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let siblings = keys.iter().filter_map(|key| key.split_once('.')).filter(|(other, _)| *other == section);
        let meant = match nearest(name, siblings.map(|(_, name)| name)) {
            Some(name) => Some(format!("{section}.{name}")),
            // Perhaps the key is right and stands in the wrong section.
            None => keys.iter().find(|key| key.split_once('.').is_some_and(|(_, other)| other == name)).cloned(),
        };
        let hint = meant.map_or(String::new(), |meant| format!(": did you mean `{meant}`?"));
        self.refuse(source, &format!("unknown key `{key}`{hint}"));
    }

    /// Returns the default of a key.
    fn find(&self, key: &str) -> Option<&Value> {
        let (section, name) = key.split_once('.')?;
        self.schema.get(section)?.get(name)
    }

    /// Returns every key there is.
    fn keys(&self) -> impl Iterator<Item = String> {
        self.schema.iter().flat_map(|(section, keys)| {
            let names = keys.as_table().into_iter().flat_map(Table::keys);
            names.map(move |name| format!("{section}.{name}"))
        })
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list such as [\"a\", \"b\"]",
        Value::Table(_) => "a section",
    }
}

/// Returns what to call a value in an error: itself if it is short and no secret, else its type.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 40 && !SECRETS.contains(&key) => format!("`{text}`"),
        _ => type_name(value).to_owned(),
    }
}

/// Returns the candidate that a word is most likely a misspelling of: at most every third letter may be wrong.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.map(|candidate| (distance(word, candidate), candidate)).min()?;
    (distance <= (word.len() / 3).max(1)).then_some(best)
}

/// Counts the bytes to insert, remove or replace to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    /// Sources with a file of that text, which lives as long as the directory.
    fn with_file(text: &str) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.toml");
        std::fs::write(&path, text).unwrap();
        (dir, Sources { file: Some(path), ..Sources::default() })
    }

    fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Loads over an empty file, so that what lies in the working directory plays no part.
    fn load_with(variables: &[(&str, &str)], set: &[&str]) -> Result<Config, Vec<String>> {
        let (_dir, mut sources) = with_file("");
        sources.env = env(variables);
        sources.set = set.iter().map(|argument| (*argument).to_owned()).collect();
        Config::load(&sources).map_err(|errors| errors.0)
    }

    #[test]
    fn without_sources_the_defaults_hold() {
        assert_eq!(load_with(&[], &[]), Ok(Config::default()));
    }

    #[test]
    fn each_layer_covers_the_one_before() {
        let (_dir, mut sources) =
            with_file("[gateway]\nring_events = 1_000\nqueue_events = 100\ngather_ms = 1\n[log]\nformat = \"json\"");
        sources.env =
            env(&[("COLINK_GATEWAY__QUEUE_EVENTS", "200"), ("COLINK_GATEWAY__GATHER_MS", "2"), ("HOME", "/")]);
        sources.set = vec!["gateway.gather_ms=3".to_owned(), "gateway.gather_ms=4".to_owned()];
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.gateway.ring_events, 1_000);
        assert_eq!(config.gateway.queue_events, 200);
        assert_eq!(config.gateway.gather_ms, 4);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.gateway.inflight, 64, "what nobody gave is the default");
    }

    #[test]
    fn a_file_is_found_by_its_variable_and_the_argument_goes_first() {
        let (_dir, mut sources) = with_file("[server]\nthreads = 3");
        let path = sources.file.take().unwrap();
        sources.env = env(&[("COLINK_CONFIG", path.to_str().unwrap())]);
        assert_eq!(Config::load(&sources).unwrap().server.threads, 3);
        let (_other, argument) = with_file("[server]\nthreads = 4");
        sources.file = argument.file;
        assert_eq!(Config::load(&sources).unwrap().server.threads, 4);
    }

    #[test]
    fn text_is_read_as_the_type_of_its_key() {
        let config = load_with(
            &[
                ("COLINK_SERVER__LISTEN", "[::]:80"),
                ("COLINK_SERVER__DATA", "/var/lib/colink"),
                ("COLINK_SERVER__ALLOWED_ORIGINS", r#"["https://a.example", "https://b.example"]"#),
                ("COLINK_METRICS__ENABLED", "false"),
                ("COLINK_LOG__LEVEL", "\"warn\""),
            ],
            &["server.max_connections=1_000", "log.format=text", "server.public_url = https://chat.example.com"],
        )
        .unwrap();
        assert_eq!(config.server.listen.to_string(), "[::]:80");
        assert_eq!(config.server.data, Path::new("/var/lib/colink"));
        assert_eq!(config.server.allowed_origins, ["https://a.example", "https://b.example"]);
        assert_eq!(config.server.max_connections, 1_000);
        assert_eq!(config.server.public_url, "https://chat.example.com");
        assert!(!config.metrics.enabled);
        assert_eq!(config.log.level, "warn");
        assert_eq!(config.log.format, LogFormat::Text);
    }

    #[test]
    fn all_errors_come_at_once_and_name_their_source() {
        let (_dir, mut sources) = with_file(
            "listen = 1\nlog = 2\n[gateway]\nqueue_evnts = 5\ninflight = -1\nqueue_events = 4\n[gatewy]\nx = 1\n\
             [server]\nqueue_events = 7\nlisten = \"here\"\n[log]\n",
        );
        let ConfigErrors(errors) = Config::load(&sources).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:#?}");
        assert!(errors[0].contains("hub.toml: line 12: duplicate key"), "{}", errors[0]);

        let path = sources.file.clone().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[log]\n", "")).unwrap();
        sources.env = env(&[
            ("COLINK_GATEWAY__GATHER", "5"),
            ("COLINK_GATEWAY_GATHER_MS", "5"),
            ("COLINK_LIMITS__PAGE_MAX", "many"),
            ("COLINK_LIMITS__MESSAGES_BURST", "5000000000"),
            ("COLINK_PRESENCE__MERGE_MS", "99999999"),
        ]);
        sources.set = ["log.format=xml", "nonsense", "threads=4", "database.batch=9000"].map(str::to_owned).to_vec();
        let ConfigErrors(errors) = Config::load(&sources).unwrap_err();
        let place = format!("cannot use {}: ", path.display());
        let mut errors: Vec<_> = errors.iter().map(|error| error.replace(&place, "FILE ")).collect();
        errors.sort();
        let mut expected = vec![
            "FILE `gateway.inflight` is out of range: -1",
            "FILE `gateway.queue_events` must be from 16 to 1000000, not 4",
            "FILE `log` must be a section, as in [log]",
            "FILE `server.listen`: invalid socket address syntax",
            "FILE unknown key `gateway.queue_evnts`: did you mean `gateway.queue_events`?",
            "FILE unknown key `listen`: did you mean `server.listen`?",
            "FILE unknown key `server.queue_events`: did you mean `gateway.queue_events`?",
            "FILE unknown section `gatewy`: did you mean `gateway`?",
            "cannot use --set database.batch: `database.queue` must hold at least one batch (9000), not 8192",
            "cannot use --set log.format: `log.format`: unknown variant `xml`, expected one of `auto`, `text`, `json`",
            "cannot use --set nonsense: it is not like section.key=value",
            "cannot use --set threads: unknown key `threads`: did you mean `server.threads`?",
            "cannot use COLINK_GATEWAY_GATHER_MS: unknown variable: did you mean `COLINK_GATEWAY__GATHER_MS`?",
            "cannot use COLINK_GATEWAY__GATHER: unknown key `gateway.gather`",
            "cannot use COLINK_LIMITS__MESSAGES_BURST: `limits.messages_burst` is out of range: 5000000000",
            "cannot use COLINK_LIMITS__PAGE_MAX: `limits.page_max` must be an integer, not `many`",
            "cannot use COLINK_PRESENCE__MERGE_MS: `presence.merge_ms` must be 0 or from 1 to 60000, not 99999999",
        ];
        expected.sort_unstable();
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_misspelt_key_is_met_with_the_nearest_one() {
        let errors = load_with(&[], &["gateway.queue_evnts=5", "auth.zzz=1"]).unwrap_err();
        let expected = "cannot use --set gateway.queue_evnts: unknown key `gateway.queue_evnts`: \
                        did you mean `gateway.queue_events`?";
        assert_eq!(errors, [expected, "cannot use --set auth.zzz: unknown key `auth.zzz`"]);
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }

    #[test]
    fn variables_that_are_not_keys_are_left_alone() {
        let variables = [
            ("COLINK_TEST_POSTGRES", "x"),
            ("COLINK_TEST__X", "x"),
            ("COLINK_TOKEN", "x"),
            ("COLINK_PASSWORD", "x"),
            ("COLINK_URL", "x"),
            ("COLINK_SERVICE_HOST", "10.0.0.1"),
            ("COLINK_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ];
        assert_eq!(load_with(&variables, &[]), Ok(Config::default()));
    }

    #[test]
    fn a_secret_is_read_from_a_file_without_its_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        std::fs::write(&path, "postgres://hub:hunter2@db/colink\n").unwrap();
        let file = ("COLINK_DATABASE__URL_FILE", path.to_str().unwrap());
        let config = load_with(&[file], &[]).unwrap();
        assert_eq!(config.database.url.expose(), "postgres://hub:hunter2@db/colink");
        assert!(!format!("{config:?}").contains("hunter2"));

        let both = load_with(&[file, ("COLINK_DATABASE__URL", "sqlite://x")], &[]).unwrap_err();
        assert_eq!(both, ["cannot use COLINK_DATABASE__URL_FILE: it is set without _FILE, too"]);
        let plain = load_with(&[("COLINK_LOG__LEVEL_FILE", file.1)], &[]).unwrap_err();
        let not_secret =
            "cannot use COLINK_LOG__LEVEL_FILE: `log.level` is not a secret and cannot be read from a file";
        assert_eq!(plain, [not_secret]);
        let missing = load_with(&[("COLINK_DATABASE__URL_FILE", "/nowhere/url")], &[]).unwrap_err();
        assert!(missing[0].starts_with("cannot use COLINK_DATABASE__URL_FILE: cannot read /nowhere/url: "));
    }

    #[test]
    fn no_error_shows_a_secret() {
        for text in [
            "[database]\nurl = \"postgres://hub:hunter2@db",
            "[database]\nurl = postgres://hub:hunter2@db",
            "[database]\nurl = \"mysql://hub:hunter2@db\"",
            "[database]\nurl = [\"postgres://hub:hunter2@db\"]",
            "[database]\nurl = \"postgres://hub:hunter2@db\"\nurl = \"hunter2\"",
            "[database]\nurl = \"\\hunter2\"",
        ] {
            let (_dir, sources) = with_file(text);
            let errors = Config::load(&sources).unwrap_err();
            assert!(!errors.to_string().contains("hunter2"), "{errors}");
            assert_eq!(errors.0.len(), errors.to_string().lines().count(), "one line each: {errors}");
        }
    }

    #[test]
    fn a_file_that_is_asked_for_has_to_be_there() {
        let sources = Sources { file: Some("/nowhere/hub.toml".into()), ..Sources::default() };
        let errors = Config::load(&sources).unwrap_err();
        assert!(errors.to_string().starts_with("cannot read /nowhere/hub.toml: "), "{errors}");
    }
}
