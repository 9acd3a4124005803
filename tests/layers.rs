//! Who may name whom in `src/`: the dependency table of docs/ARCHITECTURE.md, checked.
//!
//! The table is read from the document, so that the two cannot drift apart. A row names only rows above it, which rules
//! out cycles. Comments and links in them do not count; tests do.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = "docs/ARCHITECTURE.md";
/// The roots of the library and of the binary: they belong to no module.
const ROOTS: [&str; 2] = ["lib", "main"];

/// What the table says of one module.
struct Row {
    module: String,
    /// The modules that it may name, besides itself.
    may_name: Vec<String>,
    /// The crates that it does without.
    free_of: Vec<String>,
}

/// Returns the rows of the table: of the one whose first column is headed `module`.
fn table() -> Vec<Row> {
    let path = root().join(DOCUMENT);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let lines = text.lines().skip_while(|line| !line.starts_with("| module |")).skip(2);
    let mut rows: Vec<Row> = Vec::new();
    for line in lines.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [module, _, may_name, free_of] = cells[..] else { panic!("{DOCUMENT}: not four columns: {line}") };
        let may_name = match may_name {
            "all above" => rows.iter().map(|row| row.module.clone()).collect(),
            names => quoted(names),
        };
        let module = quoted(module).pop().unwrap_or_else(|| panic!("{DOCUMENT}: no `module` in: {line}"));
        rows.push(Row { module, may_name, free_of: quoted(free_of) });
    }
    assert!(!rows.is_empty(), "{DOCUMENT} has no table that starts with `| module |`");
    rows
}

/// Returns the words of a cell that stand in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every source file, with its path as a module: `src/actors/channel/room.rs` is `[actors, channel, room]`.
fn sources() -> Vec<(PathBuf, Vec<String>)> {
    let src = root().join("src");
    let (mut folders, mut found) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
        for path in entries.map(|entry| entry.expect("a folder can be listed to its end").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = module_path(path.strip_prefix(&src).expect("it lies in src"));
                found.push((path, module));
            }
        }
    }
    found.retain(|(_, module)| !ROOTS.contains(&module[0].as_str()));
    found.sort();
    found
}

fn module_path(file: &Path) -> Vec<String> {
    let parts = file.with_extension("");
    let mut parts: Vec<String> = parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Returns the text without its line comments, line for line.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        // The two slashes of an address stand behind a colon.
        let comment =
            line.match_indices("//").find(|(at, _)| line[..*at].chars().next_back().is_none_or(char::is_whitespace));
        code.push_str(&line[..comment.map_or(line.len(), |(at, _)| at)]);
        code.push('\n');
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns where `word::` stands as a path's beginning, and what follows it.
fn paths<'a>(code: &'a str, word: &str) -> Vec<(usize, &'a str)> {
    let start = format!("{word}::");
    let begins = |at: usize| code[..at].chars().next_back().is_none_or(|c| !is_word(c) && c != ':');
    code.match_indices(&start).filter(|(at, _)| begins(*at)).map(|(at, _)| (at, &code[at + start.len()..])).collect()
}

/// Returns the names that come next in a path: one, or those of a group in braces.
fn heads(rest: &str) -> Vec<&str> {
    let Some(group) = rest.strip_prefix('{') else { return vec![first_word(rest)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.push(first_word(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
        if c == '}' && depth == 0 && start == at + 1 {
            break;
        }
    }
    found
}

fn first_word(text: &str) -> &str {
    text.split(|c| !is_word(c)).next().unwrap_or("")
}

/// Returns what a file names at the root of the crate: by `crate::`, or by as many `super::` as lead there.
fn named<'a>(code: &'a str, module: &[String]) -> Vec<(usize, &'a str)> {
    let mut found: Vec<(usize, &str)> = Vec::new();
    for (at, rest) in paths(code, "crate") {
        found.extend(heads(rest).into_iter().map(|head| (at, head)));
    }
    for (at, rest) in paths(code, "super") {
        let behind = rest.trim_start_matches("super::");
        let ups = 1 + (rest.len() - behind.len()) / "super::".len();
        if ups >= module.len() {
            found.extend(heads(behind).into_iter().map(|head| (at, head)));
        }
    }
    found
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

#[test]
fn a_module_names_only_what_the_table_lets_it() {
    let rows = table();
    let mut broken = Vec::new();
    for (path, module) in sources() {
        let Some(row) = rows.iter().find(|row| row.module == module[0]) else { continue };
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let code = without_comments(&text);
        let file = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        for (at, name) in named(&code, &module) {
            let ours = rows.iter().any(|row| row.module == name);
            if ours && name != row.module && row.may_name.iter().all(|allowed| allowed != name) {
                let allowed = if row.may_name.is_empty() { "nothing".to_owned() } else { row.may_name.join(", ") };
                let line = line_of(&code, at);
                broken.push(format!("{file}:{line} names `{name}`, but `{}` may name only: {allowed}", row.module));
            }
        }
        for krate in &row.free_of {
            for (at, _) in paths(&code, krate) {
                broken.push(format!(
                    "{file}:{} uses {krate}, which `{}` stays free of",
                    line_of(&code, at),
                    row.module
                ));
            }
        }
    }
    assert!(broken.is_empty(), "the table in {DOCUMENT} is broken:\n{}", broken.join("\n"));
}

#[test]
fn the_table_has_a_row_for_each_module_and_names_only_rows_above() {
    let rows = table();
    let mut modules: Vec<String> = sources().into_iter().map(|(_, module)| module[0].clone()).collect();
    modules.dedup();
    for module in &modules {
        assert!(rows.iter().any(|row| row.module == *module), "{DOCUMENT} has no row for src/{module}");
    }
    for (at, row) in rows.iter().enumerate() {
        assert!(modules.contains(&row.module), "{DOCUMENT} has a row for `{}`, which is not in src", row.module);
        for name in &row.may_name {
            let above = rows[..at].iter().any(|above| above.module == *name);
            assert!(above, "{DOCUMENT}: `{}` may name `{name}`, which is no row above it", row.module);
        }
    }
}

#[test]
fn names_are_found_in_paths_in_groups_and_through_super() {
    let code = "use crate::domain::id;\nuse crate::{clock::Clock, http::{auth, ws}, storage};\n\
                type A = super::super::actors::Hub;\ntype B = super::near;\nlet c = mycrate::app; $crate::config!();\n";
    let module = ["http".to_owned(), "ws".to_owned()];
    let mut found: Vec<_> = named(code, &module).into_iter().map(|(at, name)| (line_of(code, at), name)).collect();
    found.sort_unstable();
    assert_eq!(found, [(1, "domain"), (2, "clock"), (2, "http"), (2, "storage"), (3, "actors"), (5, "config")]);
}

#[test]
fn comments_do_not_count_and_addresses_are_no_comments() {
    let code = without_comments("//! [`crate::app`]\nlet a = \"http://x\"; crate::clock::now(); // crate::cli\n");
    assert_eq!(named(&code, &["http".to_owned()]).len(), 1);
    assert_eq!(paths("sqlx::query; xsqlx::query; a::sqlx::b", "sqlx").len(), 1);
    assert_eq!(module_path(Path::new("actors/session/mod.rs")), ["actors", "session"]);
}
