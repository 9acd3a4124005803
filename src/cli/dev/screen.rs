//! How the cluster looks on a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::sight::{Sight, State};

/// What is shown beside what is seen.
pub(super) struct Page<'a> {
    pub(super) sight: &'a Sight,
    /// What happened, the oldest first, each with the second in which it did.
    pub(super) news: &'a [(u64, String)],
    /// The last line: which key does what.
    pub(super) keys: &'a str,
    pub(super) colours: bool,
}

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
/// The longest bar of a node's channels.
const BAR: i64 = 12;

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, page: &Page<'_>) {
    let (nodes, services) = (nodes(page), services(page));
    let [head, table, below, news, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(u16::try_from(nodes.len()).unwrap_or(u16::MAX)),
        Constraint::Length(u16::try_from(services.len()).unwrap_or(u16::MAX)),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(Line::styled(page.sight.summary(), BOLD)), head);
    frame.render_widget(Paragraph::new(nodes), table);
    frame.render_widget(Paragraph::new(services), below);
    let above = page.news.len().saturating_sub(usize::from(news.height));
    let happened = page.news[above..]
        .iter()
        .map(|(at, what)| Line::from(vec![Span::styled(format!("{at:>5} s  "), DIM), Span::raw(what.clone())]));
    frame.render_widget(Paragraph::new(happened.collect::<Vec<_>>()), news);
    frame.render_widget(Paragraph::new(Line::styled(page.keys, DIM)), keys);
}

fn ink(page: &Page<'_>, good: bool) -> Style {
    match (page.colours, good) {
        (true, true) => Style::new().fg(Color::Green),
        (true, false) => BOLD.fg(Color::Red),
        (false, true) => Style::new(),
        (false, false) => BOLD,
    }
}

fn nodes(page: &Page<'_>) -> Vec<Line<'static>> {
    let head = format!(
        "  {:<6} {:<6} {:<14} {:>7} {:>8} {:>9} {:>8} {:<12} {:>10} {:>6} {:>9} {:>6} {:>8}",
        "node",
        "",
        "",
        "sockets",
        "writes/s",
        "deliver/s",
        "channels",
        "",
        "taken over",
        "fenced",
        "forwarded",
        "beside",
        "repaired"
    );
    let mut lines = vec![Line::styled(head, DIM)];
    for (n, node) in page.sight.nodes.iter().enumerate() {
        let state = match node.state {
            State::Up => "up",
            State::Silent => "silent",
            State::Killed => "killed",
            State::Ended => "ended",
        };
        let bar = "■".repeat(usize::try_from(node.channels.min(BAR)).unwrap_or(0));
        let report = &node.report;
        lines.push(Line::from(vec![
            Span::styled(format!("{} ", n + 1), DIM),
            Span::raw(format!("{:<6} ", node.name)),
            Span::styled(format!("{state:<6} "), ink(page, node.state == State::Up)),
            Span::raw(format!(
                "{:<14} {:>7} {:>8.1} {:>9.1} {:>8} {bar:<12} {:>10} {:>6} {:>9} {:>6} {:>8}",
                node.url.trim_start_matches("http://"),
                node.sockets,
                node.writes,
                node.deliveries,
                node.channels,
                report.taken_over,
                report.fenced,
                report.forwarded,
                report.beside,
                report.repaired,
            )),
        ]));
    }
    lines
}

fn services(page: &Page<'_>) -> Vec<Line<'static>> {
    let mut spans = vec![Span::raw("  ")];
    for service in &page.sight.services {
        let state = match service.up {
            Some(true) => "up",
            Some(false) => "down",
            None => "?",
        };
        spans.push(Span::raw(format!("{} ", service.name)));
        spans.push(Span::styled(format!("{state:<8}"), ink(page, service.up != Some(false))));
    }
    if page.sight.degraded {
        spans.push(Span::styled("degraded  ", ink(page, false)));
    }
    if let Some(talk) = &page.sight.talk {
        spans.push(Span::raw(format!("{} messages said, {} heard by everybody", talk.said, talk.heard)));
    }
    vec![Line::default(), Line::from(spans), Line::default()]
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sight::tests::example;
    use super::*;

    fn shows(sight: &Sight, news: &[(u64, String)], width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let page = Page { sight, news, keys: "q quit   1-3 kill -9 a node, or start it", colours: true };
        terminal.draw(|frame| draw(frame, &page)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_cluster_is_drawn() {
        let mut sight = example();
        sight.nodes[1].state = State::Killed;
        (sight.nodes[1].sockets, sight.nodes[1].writes, sight.nodes[1].deliveries) = (0, 0.0, 0.0);
        sight.services[1].up = Some(false);
        sight.degraded = true;
        let news = [(4, "hub-3 is up"), (61, "hub-2 was killed; it has 3 channels"), (68, "Redis is down")];
        let news: Vec<(u64, String)> = news.into_iter().map(|(at, what)| (at, what.to_owned())).collect();
        insta::assert_snapshot!(shows(&sight, &news, 125, 13), @r#"
        "2 of 3 nodes up, 4 sockets, 8 writes/s, 43 deliveries/s                                                                      "
        "                                                                                                                             "
        "  node                         sockets writes/s deliver/s channels              taken over fenced forwarded beside repaired  "
        "1 hub-1  up     127.0.0.1:8081       2      4.2      21.4        5 ■■■■■                 5      0       120      0        0  "
        "2 hub-2  killed 127.0.0.1:8082       0      0.0       0.0        3 ■■■                   5      0       120      0        0  "
        "3 hub-3  up     127.0.0.1:8083       2      4.2      21.4       14 ■■■■■■■■■■■■          5      0       120      0        0  "
        "                                                                                                                             "
        "  Postgres up      Redis down    degraded  240 messages said, 239 heard by everybody                                         "
        "                                                                                                                             "
        "    4 s  hub-3 is up                                                                                                         "
        "   61 s  hub-2 was killed; it has 3 channels                                                                                 "
        "   68 s  Redis is down                                                                                                       "
        "q quit   1-3 kill -9 a node, or start it                                                                                     "
        "#);
    }

    #[test]
    fn any_size_is_drawn() {
        let news: Vec<(u64, String)> = (0..40).map(|n| (n, format!("line {n}"))).collect();
        for width in 1..140 {
            for height in 1..20 {
                shows(&example(), &news, width, height);
            }
        }
        assert!(shows(&example(), &news, 80, 20).contains("line 39"), "the newest are shown");
    }

    #[test]
    fn without_colours_there_are_none() {
        let mut terminal = Terminal::new(TestBackend::new(120, 20)).unwrap();
        let page = Page { sight: &example(), news: &[], keys: "", colours: false };
        terminal.draw(|frame| draw(frame, &page)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }
}
