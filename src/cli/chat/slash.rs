//! Slash commands: what a line that starts with `/` asks for.

/// A line of input, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// To be sent as it is.
    Text(String),
    Join(String),
    Leave,
    Create(String),
    Dm(String),
    Topic(String),
    /// An emoji's name, perhaps, and a text.
    Status(String, String),
    React(String),
    Reply(String),
    Who,
    Help,
    Quit,
}

/// What `/help` says.
pub(super) const HELP: &[&str] = &[
    "/join NAME         join a public channel       /leave            leave this channel",
    "/create NAME       make a public channel       /dm NAME          talk to somebody alone",
    "/topic TEXT        set this channel's topic    /who              who is in this channel",
    "/reply TEXT        answer the last message     /react EMOJI      react to the last message",
    "/me-status TEXT    set your status, such as :palm_tree: away; nothing clears it",
    "//TEXT             send a line that starts with a slash    /quit, Ctrl-C    leave",
    "Tab, Ctrl-N, Ctrl-P switch channels; Up, Down, PgUp, PgDn scroll; Alt-Enter starts a new line; Esc closes this",
];

/// Understands a line, or says what is wrong with it.
pub(super) fn parse(line: &str) -> Result<Line, String> {
    let Some(command) = line.strip_prefix('/') else { return Ok(Line::Text(line.to_owned())) };
    if command.starts_with('/') {
        return Ok(Line::Text(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let needs = |what: &str| match rest {
        "" => Err(format!("/{name} needs {what}")),
        rest => Ok(rest.to_owned()),
    };
    match name {
        "join" => needs("the name of a channel").map(Line::Join),
        "leave" => Ok(Line::Leave),
        "create" => needs("a name for the channel").map(Line::Create),
        "dm" => needs("somebody's name").map(|name| Line::Dm(name.trim_start_matches('@').to_lowercase())),
        "topic" => Ok(Line::Topic(rest.to_owned())),
        "me-status" => Ok(status(rest)),
        "react" => needs("an emoji, such as tada").map(Line::React),
        "reply" => needs("a text").map(Line::Reply),
        "who" => Ok(Line::Who),
        "help" => Ok(Line::Help),
        "quit" => Ok(Line::Quit),
        _ => Err(format!("there is no /{name}: /help shows what there is, // sends a line with a slash")),
    }
}

/// A status may start with an emoji in colons.
fn status(text: &str) -> Line {
    let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
    match first.strip_prefix(':').and_then(|emoji| emoji.strip_suffix(':')) {
        Some(emoji) if !emoji.is_empty() => Line::Status(emoji.to_owned(), rest.trim().to_owned()),
        _ => Line::Status(String::new(), text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_slash_is_sent() {
        assert_eq!(parse("a / b"), Ok(Line::Text("a / b".into())));
        assert_eq!(parse("//etc/hosts"), Ok(Line::Text("/etc/hosts".into())));
    }

    #[test]
    fn commands_take_their_rest() {
        assert_eq!(parse("/join  general "), Ok(Line::Join("general".into())));
        assert_eq!(parse("/dm @Bob"), Ok(Line::Dm("bob".into())));
        assert_eq!(parse("/reply well done"), Ok(Line::Reply("well done".into())));
        assert_eq!(parse("/topic"), Ok(Line::Topic(String::new())));
        assert_eq!(parse("/quit"), Ok(Line::Quit));
    }

    #[test]
    fn a_status_may_start_with_an_emoji() {
        assert_eq!(parse("/me-status :palm_tree: on leave"), Ok(Line::Status("palm_tree".into(), "on leave".into())));
        assert_eq!(parse("/me-status at lunch"), Ok(Line::Status(String::new(), "at lunch".into())));
        assert_eq!(parse("/me-status"), Ok(Line::Status(String::new(), String::new())));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse("/join").unwrap_err().contains("name of a channel"));
        assert!(parse("/dance").unwrap_err().contains("/help"));
    }
}
