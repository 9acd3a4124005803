//! The report as one page: a table, latency curves and bars, drawn inline, in the reader's light or dark.

use std::fmt::Write;

use super::{Report, Row, or_dash, short};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d232b; --soft: #667180; --line: #d9dee5; --ground: #fff; --card: #f6f8fa; --bad: #c4302b;
  --c0: #2667c9; --c1: #d9730d; --c2: #0f8a6d; --c3: #a13fb5; --c4: #c4302b; --c5: #6b7f19; --c6: #0c86a8; --c7: #8a5a2b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b3; --line: #303743; --ground: #12161c; --card: #1a2029; --bad: #ff7b72;
  --c0: #6ea8ff; --c1: #ffab57; --c2: #4fd1ac; --c3: #d890ea; --c4: #ff7b72; --c5: #b8cf57; --c6: #5cc8e6; --c7: #d2a679; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--ground);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem }
p { color: var(--soft); margin: .25rem 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px; white-space: nowrap }
th { color: var(--soft); font-weight: 500 } th, td { padding: .35rem .45rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left } tr:last-child td { border-bottom: 0 }
.bad { color: var(--bad); font-weight: 600 } ul { margin: 0; padding-left: 1.1rem } li { margin: .2rem 0 } li b { font-weight: 600 }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--soft) }
.grid { stroke: var(--line) } .floor { stroke: var(--ink); stroke-dasharray: 4 3 } .curve { fill: none; stroke-width: 2 }
.key { display: inline-flex; align-items: center; gap: .4rem; margin: .5rem 1rem 0 0; font-size: 13px } .key i { width: 12px; height: 12px; border-radius: 3px }
";

/// The width of every plot; the browser scales it.
const W: f64 = 1_000.0;

/// Returns the whole page. Nothing on it is loaded from elsewhere.
pub(super) fn page(report: &Report) -> String {
    let sections = [
        ("Latency by percentile", curves(&report.rows)),
        ("Processor time for 1,000 deliveries, in seconds; dashed: plain writes", cost_bars(&report.rows)),
        ("Deliveries a second", bars(&report.rows, |row| row.deliveries_per_s, |_| None)),
        ("All figures", table(&report.rows)),
        ("Seen besides", notes(&report.rows)),
    ];
    let body: String = sections
        .iter()
        .filter(|(_, content)| !content.is_empty())
        .map(|(title, content)| format!("<h2>{title}</h2><div class=\"card\">{content}</div>"))
        .collect();
    let verdict = match report.faults().as_slice() {
        [] => "<p>Nothing was lost, came twice or came out of order.</p>".to_owned(),
        faults => format!("<p class=\"bad\">{}</p>", escape(&faults.join("; "))),
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Colink under load</title><style>{STYLE}</style></head><body>\
         <h1>Colink {} under load</h1><p>{}</p>{verdict}{body}</body></html>\n",
        report.version,
        escape(&report.heading())
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(n: usize) -> String {
    format!("var(--c{})", n % 8)
}

/// Draws latency over percentile, both so that the tail is seen: 90, 99, 99.9 % at equal steps, milliseconds by powers.
fn curves(rows: &[Row]) -> String {
    const H: f64 = 360.0;
    const LEFT: f64 = 72.0;
    const BOTTOM: f64 = 30.0;
    let drawn: Vec<_> = rows
        .iter()
        .enumerate()
        .filter_map(|(n, row)| row.main_latency().map(|(name, latency)| (n, row, name, latency)))
        .collect();
    let all = || drawn.iter().flat_map(|(_, _, _, latency)| latency.curve.iter());
    let (Some(low), Some(high)) =
        (all().map(|point| point.1).min_by(f64::total_cmp), all().map(|point| point.1).max_by(f64::total_cmp))
    else {
        return String::new();
    };
    let (low, high) = (low.max(0.001).log10().floor(), high.max(0.01).log10().ceil());
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-7).log10();
    let far = all().map(|point| nines(point.0)).fold(2.0, f64::max).ceil();
    let x = |percentile: f64| LEFT + nines(percentile) / far * (W - LEFT - 10.0);
    let y = |ms: f64| (H - BOTTOM) - (ms.max(0.001).log10() - low) / (high - low).max(1.0) * (H - BOTTOM - 10.0);

    let mut svg = format!("<svg viewBox=\"0 0 {W} {H}\" role=\"img\" aria-label=\"latency by percentile\">");
    for power in low as i32..=high as i32 {
        let (ms, at) = (10_f64.powi(power), y(10_f64.powi(power)));
        line(&mut svg, (LEFT, at), (W - 10.0, at), "grid");
        label(&mut svg, (LEFT - 8.0, at + 4.0), "end", &format!("{} ms", short(ms)));
    }
    for (percentile, text) in
        [(0.0, "0"), (90.0, "90 %"), (99.0, "99 %"), (99.9, "99.9 %"), (99.99, "99.99 %"), (99.999, "99.999 %")]
    {
        if nines(percentile) <= far {
            line(&mut svg, (x(percentile), 10.0), (x(percentile), H - BOTTOM), "grid");
            label(&mut svg, (x(percentile), H - 8.0), "middle", text);
        }
    }
    let mut keys = String::new();
    for (n, row, name, latency) in &drawn {
        let points: Vec<String> =
            latency.curve.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        put(
            &mut svg,
            format_args!("<polyline class=\"curve\" style=\"stroke:{}\" points=\"{}\"/>", colour(*n), points.join(" ")),
        );
        let title = escape(&format!("{} ({name})", row.title()));
        put(&mut keys, format_args!("<span class=\"key\"><i style=\"background:{}\"></i>{title}</span>", colour(*n)));
    }
    svg + "</svg>" + &keys
}

fn cost_bars(rows: &[Row]) -> String {
    bars(rows, |row| row.cpu_s_per_1000, |row| row.floor_cpu_s_per_1000)
}

/// Draws a bar for each row that has the figure, and a dashed mark where it has one to compare with.
fn bars(rows: &[Row], figure: impl Fn(&Row) -> Option<f64>, mark: impl Fn(&Row) -> Option<f64>) -> String {
    const LEFT: f64 = 300.0;
    const STEP: f64 = 32.0;
    let drawn: Vec<_> = rows.iter().enumerate().filter_map(|(n, row)| Some((n, row, figure(row)?))).collect();
    let most = drawn.iter().flat_map(|(_, row, value)| [*value, mark(row).unwrap_or(0.0)]).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let x = |value: f64| LEFT + value / most * (W - LEFT - 90.0);
    let height = drawn.len() as f64 * STEP;
    let mut svg = format!("<svg viewBox=\"0 0 {W} {height}\" role=\"img\">");
    for (place, (n, row, value)) in drawn.iter().enumerate() {
        let top = place as f64 * STEP;
        label(&mut svg, (LEFT - 10.0, top + 20.0), "end", &escape(&row.title()));
        let width = (x(*value) - LEFT).max(1.0);
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"20\" rx=\"3\" style=\"fill:{}\"/>",
                top + 6.0,
                colour(*n)
            ),
        );
        if let Some(mark) = mark(row) {
            line(&mut svg, (x(mark), top + 2.0), (x(mark), top + 30.0), "floor");
        }
        label(&mut svg, (x(value.max(mark(row).unwrap_or(0.0))) + 8.0, top + 20.0), "start", &short(*value));
    }
    svg + "</svg>"
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a string takes everything");
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
    put(svg, format_args!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
}

fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
}

fn table(rows: &[Row]) -> String {
    let head = [
        "scenario",
        "load",
        "msg/s",
        "deliv/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "ack p50",
        "ack p99",
        "socket p50",
        "p99",
        "p99.9",
        "CPU s/1,000",
        "x floor",
        "CPU ms/msg",
        "KiB/conn",
        "lost",
        "twice",
        "disorder",
    ];
    let mut out = String::from("<table><thead><tr>");
    head.iter().for_each(|text| put(&mut out, format_args!("<th>{text}</th>")));
    out += "</tr></thead><tbody>";
    for row in rows {
        let latency = row.main_latency().map(|(_, latency)| latency);
        put(&mut out, format_args!("<tr><td>{}</td><td>{}</td>", escape(&row.scenario), escape(&row.load)));
        let cost = [
            row.commit_to_socket_p999_ms,
            row.cpu_s_per_1000,
            row.times_floor,
            row.cpu_ms_per_message,
            row.kib_per_connection,
        ];
        for number in row.carried(latency).into_iter().chain(cost) {
            put(&mut out, format_args!("<td>{}</td>", or_dash(number)));
        }
        for count in [row.lost, row.duplicates, row.out_of_order] {
            let class = if count > 0 { " class=\"bad\"" } else { "" };
            put(&mut out, format_args!("<td{class}>{count}</td>"));
        }
        out += "</tr>";
    }
    out + "</tbody></table>"
}

fn notes(rows: &[Row]) -> String {
    let noted = rows.iter().filter(|row| !row.note.is_empty());
    let items: String =
        noted.map(|row| format!("<li><b>{}</b>: {}</li>", escape(&row.title()), escape(&row.note))).collect();
    if items.is_empty() { items } else { format!("<ul>{items}</ul>") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        let page = page(&example());
        for elsewhere in ["http:", "https:", "//", "src=", "href=", "@import", "url(", "<script"] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.matches("<svg").count() == 3);
    }

    #[test]
    fn what_came_from_elsewhere_is_escaped() {
        let page = page(&example());
        assert!(page.contains("all &lt;well&gt; &amp; good"));
        assert!(!page.contains("<well>"));
    }

    #[test]
    fn an_empty_report_is_still_a_page() {
        let mut report = example();
        report.rows.clear();
        assert!(page(&report).ends_with("</html>\n"));
    }
}
