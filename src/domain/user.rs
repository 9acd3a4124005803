//! Users, their roles, and what they show of themselves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Refusal, invalid};
use super::id::UserId;
use crate::clock::Timestamp;

/// Makes an enum whose JSON, database and command-line text is the same.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            /// Every value, lowest first.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// Returns the text used in JSON, the database and on the command line.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok($name::$variant),)*
                    _ => Err(format!("unknown {} `{text}`: expected one of {}",
                        stringify!($name).to_lowercase(), [$($text),*].join(", "))),
                }
            }
        }
    };
}
pub(crate) use text_enum;

text_enum! {
    /// A user's role in the workspace, least first: a higher one may do all that a lower one may.
    Role {
        /// Sees only the channels they were brought into.
        Guest = "guest",
        /// May browse, join and make channels.
        Member = "member",
        /// May also remove others' messages and look after any public channel.
        Moderator = "moderator",
        /// May do everything, including managing users.
        Admin = "admin",
    }
}

text_enum! {
    /// What a user asked to be shown as.
    PresenceMode {
        /// Online while active, away when idle.
        Auto = "auto",
        /// Away whatever they do.
        Away = "away",
        /// Online, but not to be disturbed.
        Dnd = "dnd",
    }
}

text_enum! {
    /// What others see; of what several nodes of a cluster see, the highest counts.
    Presence {
        /// No session.
        Offline = "offline",
        /// Connected to a node that lives, but of which nothing is heard.
        Unknown = "unknown",
        /// Connected, but idle or marked away.
        Away = "away",
        /// Connected and active.
        Online = "online",
        /// Connected, and not to be disturbed.
        Dnd = "dnd",
    }
}

/// A custom status, gone after `until`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// An emoji name without colons, such as `palm_tree`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub emoji: String,
    /// Up to 100 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// When it ends; never, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A user as others see them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// The identifier.
    pub id: UserId,
    /// The handle, unique, as in `@ana`.
    pub name: String,
    /// The name shown.
    pub display_name: String,
    /// What they do, up to 100 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// An IANA time zone name, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub timezone: String,
    /// The role in the workspace.
    pub role: Role,
    /// Whether this is a program.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bot: bool,
    /// The custom status, if one is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// What they asked to be shown as.
    pub presence_mode: PresenceMode,
    /// When do-not-disturb or a manual mode ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_until: Option<Timestamp>,
    /// When the account was made.
    pub created_at: Timestamp,
    /// When the account was deactivated, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deactivated_at: Option<Timestamp>,
}

/// Checks a handle: 2 to 32 of `a-z 0-9 . _ -`, starting with a letter or digit. Returns it in lower case.
pub fn handle(name: &str) -> Result<String, Refusal> {
    let name = name.to_ascii_lowercase();
    let fits = (2..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    let reserved = ["channel", "here", "everyone", "all"].contains(&name.as_str());
    match (fits, reserved) {
        (true, false) => Ok(name),
        (true, true) => Err(invalid(format!("name `{name}` is reserved for mentions"))),
        (false, _) => {
            Err(invalid("a user name has 2 to 32 of a-z, 0-9, dot, dash, underscore and starts with a letter or digit"))
        }
    }
}

/// Checks a one-line text of at most `max` characters.
pub fn one_line(field: &str, text: &str, max: usize) -> Result<String, Refusal> {
    let text = text.trim();
    if text.chars().count() > max {
        return Err(invalid(format!("{field} is longer than {max} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(format!("{field} has a control character")));
    }
    Ok(text.to_owned())
}

/// Checks a password: 8 to 256 characters.
pub fn password(text: &str) -> Result<(), Refusal> {
    match text.chars().count() {
        8..=256 => Ok(()),
        n => Err(invalid(format!("a password has 8 to 256 characters, this one has {n}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_folded_and_bounded() {
        assert_eq!(handle("Ana").unwrap(), "ana");
        assert_eq!(handle("b.o-b_2").unwrap(), "b.o-b_2");
        for bad in ["a", "", "-ana", "an a", "ána", "here", &"x".repeat(33)] {
            assert!(handle(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_are_ordered() {
        assert!(Role::Admin > Role::Moderator && Role::Moderator > Role::Member && Role::Member > Role::Guest);
        assert_eq!("admin".parse::<Role>().unwrap(), Role::Admin);
        assert!("root".parse::<Role>().unwrap_err().contains("guest, member, moderator, admin"));
    }
}
