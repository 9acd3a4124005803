//! The report on a terminal: what was carried, what it cost, and a sentence a row.

use std::io::{Result, Write};

use super::{Report, Row, or_dash};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// How a cell is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Plain,
    Good,
    Bad,
}

type Cell = (String, Mood);

pub(super) fn print(report: &Report, out: &mut impl Write, colours: bool) -> Result<()> {
    let paint = |code: &'static str| if colours { code } else { "" };
    writeln!(out, "{}{}{}", paint(DIM), report.heading(), paint(PLAIN))?;

    let head =
        ["", "", "msg/s", "deliv/s", "p50", "p99", "p99.9", "max", "ack p50", "ack p99", "socket p50", "socket p99"];
    writeln!(out, "\n{}Carried{} (milliseconds; from the intended send)", paint(BOLD), paint(PLAIN))?;
    grid(out, &head, &report.rows.iter().map(carried).collect::<Vec<_>>(), colours)?;

    let head =
        ["", "", "CPU s/1,000", "floor", "x floor", "CPU ms/msg", "KiB/conn", "lost", "twice", "disorder", "lags"];
    writeln!(out, "\n{}Cost and faults{}", paint(BOLD), paint(PLAIN))?;
    grid(out, &head, &report.rows.iter().map(cost).collect::<Vec<_>>(), colours)?;

    writeln!(out)?;
    for row in report.rows.iter().filter(|row| !row.note.is_empty()) {
        writeln!(out, "{}{}{}: {}", paint(BOLD), row.title(), paint(PLAIN), row.note)?;
    }
    Ok(())
}

fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Mood::Plain)
}

fn carried(row: &Row) -> Vec<Cell> {
    let latency = row.receive.as_ref().or(row.reply.as_ref());
    let cells = row.carried(latency).into_iter().map(|number| plain(or_dash(number)));
    [plain(&*row.scenario), plain(&*row.load)].into_iter().chain(cells).collect()
}

fn cost(row: &Row) -> Vec<Cell> {
    let good_if = |good: bool| if good { Mood::Good } else { Mood::Plain };
    let fault = |count: u64| (count.to_string(), if count == 0 { Mood::Good } else { Mood::Bad });
    vec![
        plain(&*row.scenario),
        plain(&*row.load),
        plain(or_dash(row.cpu_s_per_1000)),
        plain(or_dash(row.floor_cpu_s_per_1000)),
        (or_dash(row.times_floor), good_if(row.times_floor.is_some_and(|times| times <= 1.0))),
        plain(or_dash(row.cpu_ms_per_message)),
        plain(or_dash(row.kib_per_connection)),
        fault(row.lost),
        fault(row.duplicates),
        fault(row.out_of_order),
        plain(row.lagged.to_string()),
    ]
}

/// Prints rows in columns: names to the left, numbers to the right.
fn grid(out: &mut impl Write, head: &[&str], rows: &[Vec<Cell>], colours: bool) -> Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].0.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[Cell]| -> String {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, ((text, mood), width))| {
            let padded = if column < 2 { format!("{text:<width$}") } else { format!("{text:>width$}") };
            match mood {
                Mood::Good if colours => format!("{GREEN}{padded}{PLAIN}"),
                Mood::Bad if colours => format!("{RED}{padded}{PLAIN}"),
                _ => padded,
            }
        });
        padded.collect::<Vec<_>>().join("  ")
    };
    let heads: Vec<Cell> = head.iter().map(|text| plain(*text)).collect();
    writeln!(out, "{}", line(&heads).trim_end())?;
    rows.iter().try_for_each(|row| writeln!(out, "{}", line(row).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_is_coloured_off_a_terminal() {
        let mut out = Vec::new();
        print(&example(), &mut out, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains('\x1b'));
        let rows: Vec<&str> =
            text.lines().filter(|line| line.contains("fanout 1 x 1000") && line.contains("0.250")).collect();
        assert_eq!(rows.len(), 1, "{text}");
        let head = text.lines().find(|line| line.contains("x floor")).unwrap();
        assert_eq!(head.find("x floor").unwrap() + "x floor".len(), rows[0].find("0.250").unwrap() + "0.250".len());
    }

    #[test]
    fn a_fault_is_red_on_a_terminal() {
        let mut report = example();
        report.rows[0].lost = 7;
        let mut out = Vec::new();
        print(&report, &mut out, true).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("\x1b[31m"));
    }
}
