//! The dependency table of docs/ARCHITECTURE.md, checked: what a module may name of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Table = BTreeMap<String, BTreeSet<String>>;

/// Reads the rows `| module | what it may name |` between the markers of the document.
fn table() -> Table {
    let text = std::fs::read_to_string("docs/ARCHITECTURE.md").expect("docs/ARCHITECTURE.md is there");
    let begin = text.find("<!-- layers -->").expect("the table begins with its marker");
    let end = text.find("<!-- /layers -->").expect("the table ends with its marker");
    let mut table = Table::new();
    for line in text[begin..end].lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let words =
            |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        for module in words(cells[1]) {
            table.insert(module, words(cells[2]));
        }
    }
    table
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the module that a file belongs to: its folder or its own name under `src`.
fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix("src").expect("the file is under src");
    let first = inner.components().next().expect("a file has a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Returns the modules that a line of code names by `crate::`.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or("");
    let behind = code.split("crate::").skip(1);
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    behind.map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_module_names_only_what_the_table_allows() {
    let table = table();
    let mut found = Vec::new();
    files(Path::new("src"), &mut found);
    let mut broken = Vec::new();
    for path in found {
        let module = module_of(&path);
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some(allowed) = table.get(&module) else {
            broken.push(format!("{}: `{module}` is not in the table", path.display()));
            continue;
        };
        if allowed.contains("all") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file can be read");
        // A macro's own path is no dependency of the file that defines it; tests may use what they test with.
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(&text);
        for (number, line) in product.lines().enumerate() {
            for name in named(line) {
                if name != module && table.contains_key(&name) && !allowed.contains(&name) {
                    let at = format!("{}:{}", path.display(), number + 1);
                    broken.push(format!("{at}: `{module}` may not name `{name}`"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "docs/ARCHITECTURE.md does not allow:\n{}", broken.join("\n"));
}
