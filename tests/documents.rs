//! The documents, held to the code: what the code has is told, and what is told is in the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use colink::config::Config;
use colink::domain::command::Command;
use colink::domain::error::Code;
use colink::domain::event::EventKind;
use colink::protocol::close::{CloseCode, ComeBack};

const PROTOCOL: &str = include_str!("../docs/PROTOCOL.md");
const OPERATIONS: &str = include_str!("../docs/OPERATIONS.md");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files below a folder with one of these extensions.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("a folder can be listed to its end").path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|other| other == extension) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Returns the pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    pages
}

/// Returns the words of a text that stand in backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the row of a table whose first cell starts with `word`, in backticks or bare.
fn row(document: &str, word: &str) -> Option<String> {
    let starts = [format!("| {word} |"), format!("| `{word}`")];
    let listed = |line: &str| line.split('|').nth(1).is_some_and(|cell| quoted(cell).contains(word));
    let told =
        |line: &&str| line.starts_with('|') && (starts.iter().any(|start| line.starts_with(start)) || listed(line));
    document.lines().find(told).map(str::to_owned)
}

#[test]
fn every_command_is_in_the_protocol() {
    for name in Command::NAMES {
        assert!(row(PROTOCOL, name).is_some(), "docs/PROTOCOL.md does not tell of the command {name}");
    }
}

#[test]
fn every_event_is_in_the_protocol_with_its_fields() {
    for kind in EventKind::ALL {
        let row = row(PROTOCOL, kind.as_str()).unwrap_or_else(|| panic!("docs/PROTOCOL.md lacks {}", kind.as_str()));
        for field in kind.fields() {
            assert!(quoted(&row).contains(field), "docs/PROTOCOL.md: {} lacks `{field}`", kind.as_str());
        }
    }
}

#[test]
fn every_close_code_is_in_the_protocol_with_what_comes_next() {
    for code in CloseCode::ALL {
        let row = row(PROTOCOL, &code.code().to_string());
        let row = row.unwrap_or_else(|| panic!("docs/PROTOCOL.md lacks the close code {}", code.code()));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let next = match code.come_back() {
            ComeBack::Resume => "resume",
            ComeBack::Identify => "identify",
            ComeBack::No => "no",
        };
        assert!(cells[2].starts_with(code.reason()), "docs/PROTOCOL.md: {} is `{}`", code.code(), code.reason());
        assert!(cells[3].starts_with(next), "docs/PROTOCOL.md: after {} comes {next}", code.code());
    }
}

#[test]
fn every_error_is_in_the_protocol_with_its_status() {
    for code in Code::ALL {
        let row = row(PROTOCOL, code.as_str());
        let row = row.unwrap_or_else(|| panic!("docs/PROTOCOL.md lacks the error {}", code.as_str()));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2], code.status().to_string(), "docs/PROTOCOL.md: the status of {}", code.as_str());
        assert_eq!(cells[3] == "yes", code.temporary(), "docs/PROTOCOL.md: is {} temporary?", code.as_str());
    }
}

#[test]
fn every_configuration_key_that_a_page_names_is_there() {
    let config = toml::Table::try_from(Config::default()).expect("the defaults are made of TOML's own types");
    for page in pages() {
        let text = read(&page);
        for word in quoted(&text) {
            let Some((section, key)) = word.split_once('.') else { continue };
            let Some(keys) = config.get(section).and_then(|keys| keys.as_table()) else { continue };
            let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            // A file such as `auth.rs`, or a frame's type.
            if plain && key != "rs" && word != "presence.subscribe" {
                assert!(keys.contains_key(key), "{}: there is no key `{word}`", page.display());
            }
        }
    }
}

#[test]
fn every_metric_is_told_and_there_is_no_other() {
    let mut counted = BTreeSet::new();
    for file in files(&root().join("src"), "rs") {
        let text = read(&file);
        for call in text.split("metrics::").skip(1) {
            let name = call.split_once("!(\"").and_then(|(kind, rest)| {
                ["counter", "gauge", "histogram"].contains(&kind).then(|| rest.split('"').next().unwrap_or_default())
            });
            counted.extend(name.map(str::to_owned));
        }
    }
    let told = OPERATIONS.lines().filter_map(|line| line.strip_prefix("| `colink_"));
    let told: BTreeSet<String> =
        told.map(|rest| format!("colink_{}", rest.split(['`', '{']).next().unwrap_or_default())).collect();
    assert_eq!(counted, told, "src/ on the left, docs/OPERATIONS.md on the right");
}

#[test]
fn every_file_that_a_page_links_to_is_there() {
    for page in pages() {
        let folder = page.parent().unwrap_or(Path::new("")).to_owned();
        for link in read(&page).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(folder.join(target).exists(), "{} links to {target}", page.display());
            }
        }
    }
}

/// Returns whether a text has `start` in it with `name` behind, as a whole word.
fn has(text: &str, start: &str, name: &str) -> bool {
    let whole = format!("{start}{name}");
    let ends = |at: usize| !text[at + whole.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
    text.match_indices(&whole).any(|(at, _)| ends(at))
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let folders = ["src", "tests", "examples", "benches"];
    let sources: Vec<PathBuf> = folders.iter().flat_map(|folder| files(&root().join(folder), "rs")).collect();
    for page in pages() {
        let text = read(&page);
        for word in quoted(&text) {
            let path = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./".contains(&b));
            if path && word.ends_with(".rs") {
                let there = sources.iter().any(|source| source.ends_with(word));
                assert!(there, "{}: there is no file `{word}`", page.display());
            }
        }
    }
}

#[test]
fn every_method_that_a_page_names_is_there() {
    let sources: Vec<String> = files(&root().join("src"), "rs").iter().map(|file| read(file)).collect();
    for page in pages() {
        let text = read(&page);
        for word in quoted(&text) {
            let Some((kind, name)) = word.split_once("::") else { continue };
            let ours = |text: &&String| has(text, "struct ", kind) || has(text, "enum ", kind);
            if !kind.starts_with(|c: char| c.is_ascii_uppercase()) || !sources.iter().any(|text| ours(&text)) {
                continue;
            }
            let told = |text: &String| {
                let method = has(text, "impl ", kind) && has(text, "fn ", name);
                method || (has(text, "enum ", kind) && has(text, "    ", name))
            };
            assert!(sources.iter().any(told), "{}: there is no `{word}`", page.display());
        }
    }
}
