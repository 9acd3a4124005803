//! Account work that is no command: signing up, signing in and out, what the administration's command line does.

use serde::{Deserialize, Serialize};

use super::apply::{Scope, make_user};
use super::tokens::{self, Token};
use super::writer::Reply;
use super::{StoreError, consumers, events, idempotency, last_seen, users};
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal, conflict, forbidden, not_found};
use crate::domain::event::EventKind;
use crate::domain::id::{StreamId, TokenId, UserId};
use crate::domain::permission;
use crate::domain::user::{PresenceMode, Role};

/// The caller of what the server does by itself, and of what the operator does.
pub const SYSTEM: Principal =
    Principal { user_id: UserId(uuid::Uuid::nil()), role: Role::Admin, token_id: TokenId(uuid::Uuid::nil()) };

/// What is said of an idempotency key that has no first answer.
pub const NO_ANSWER: &str = "null";

/// Why somebody may have a sign-in or set a password. It was true when they asked; it is checked again where it is stored,
/// for a password may have been changed, a sign-in ended and a role taken since.
#[derive(Clone, Serialize, Deserialize)]
pub enum Proof {
    /// It is the operator, whose right is the database itself.
    Operator,
    /// They know the password: the PHC string that it was compared with.
    Password(String),
    /// The sign-in that they ask by, and its user's role.
    SignIn,
}

/// One piece of account work.
#[derive(Clone, Serialize, Deserialize)]
pub enum Account {
    /// Makes an account with an invitation.
    SignUp {
        /// The SHA-256 of the invitation's code.
        code_hash: [u8; 32],
        /// The handle.
        name: String,
        /// The name shown.
        display_name: Option<String>,
        /// The PHC string of the password.
        password_hash: String,
    },
    /// Makes an account for the operator, whose right is the database itself.
    Add {
        /// The handle.
        name: String,
        /// The name shown.
        display_name: Option<String>,
        /// The role.
        role: Role,
        /// The PHC string of the password, if there is to be one.
        password_hash: Option<String>,
        /// Only if there is no account at all: the first administrator.
        first: bool,
    },
    /// Keeps a new sign-in.
    SignIn {
        /// Whose.
        user: UserId,
        /// Why they may have it.
        proof: Proof,
        /// The sign-in.
        token: Token,
        /// The SHA-256 of its secret.
        hash: [u8; 32],
    },
    /// Moves the end of sign-ins that are in use, at most once in [`PROLONGED_EVERY_S`] each.
    Prolong {
        /// Which.
        tokens: Vec<TokenId>,
        /// When they end if they are not used again.
        until: Timestamp,
    },
    /// Ends a sign-in.
    SignOut {
        /// Whose.
        user: UserId,
        /// Which.
        token: TokenId,
    },
    /// Sets a password.
    SetPassword {
        /// Whose.
        user: UserId,
        /// Why they may.
        proof: Proof,
        /// The PHC string.
        hash: String,
        /// Whether to end all sign-ins too.
        sign_out: bool,
    },
    /// Ends custom statuses and manual presence whose time is over, of up to a hundred users.
    EndStatuses,
    /// Keeps when users last did something; at most [`SEEN_MAX`], in the order of their identifiers.
    Seen {
        /// Who, and when.
        users: Vec<(UserId, Timestamp)>,
    },
    /// Looks for the first answer to an idempotency key, or says [`NO_ANSWER`]; changes nothing.
    FirstAnswer {
        /// Whose key.
        user: UserId,
        /// The key.
        key: String,
        /// What it has to be bound to.
        hash: [u8; 32],
    },
    /// Keeps the first answer to an idempotency key, of what is not stored; nothing, if the key was taken meanwhile.
    KeepAnswer {
        /// Whose key.
        user: UserId,
        /// The key.
        key: String,
        /// What it is bound to.
        hash: [u8; 32],
        /// The answer as JSON.
        response: String,
    },
    /// Takes a consumer of the log over: the answer is its epoch.
    TakeOver {
        /// Which.
        consumer: String,
    },
    /// Keeps how far a consumer is, in at most [`consumers::PLACES_MAX`] streams.
    KeepPlaces {
        /// Which.
        consumer: String,
        /// Its epoch.
        epoch: i64,
        /// The numbers up to which it had everything.
        places: Vec<(StreamId, i64)>,
    },
    /// Puts an event aside that a consumer gave up on.
    Bury {
        /// Which.
        consumer: String,
        /// Its epoch.
        epoch: i64,
        /// The event.
        event: (StreamId, i64),
        /// Why.
        reason: String,
        /// After how many tries.
        tries: i64,
    },
    /// Forgets an event that was put aside and was taken after all.
    DigUp {
        /// Which consumer.
        consumer: String,
        /// Its epoch.
        epoch: i64,
        /// The event.
        event: (StreamId, i64),
    },
    /// Has events that were put aside given once more; the answer says how many.
    Redrive {
        /// To which consumer; to each whose they are, if absent.
        consumer: Option<String>,
        /// Which event; all, if absent.
        event: Option<(StreamId, i64)>,
    },
    /// Deletes some of what ended before a time: at most [`PRUNED_MAX`] rows, the answer says how many.
    Prune {
        /// Of what.
        what: Ended,
        /// The time.
        before: Timestamp,
    },
}

/// What is deleted some time after it no longer counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ended {
    /// First answers, with their idempotency keys.
    Keys,
    /// Sign-ins that expired or were ended.
    Tokens,
    /// Invitations that expired, were ended or are used up.
    Invites,
}

impl Ended {
    /// Returns its name in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Keys => "keys",
            Ended::Tokens => "tokens",
            Ended::Invites => "invites",
        }
    }
}

/// The answer to [`Account::Prune`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pruned {
    /// How many rows are gone.
    pub pruned: u64,
}

/// The shortest time in seconds between two moves of a sign-in's end: using it costs no write each time.
pub const PROLONGED_EVERY_S: i64 = 60 * 60;

/// The most rows that one [`Account::Prune`] deletes, so that no other write waits for long.
pub const PRUNED_MAX: u64 = 1_000;

/// The most users in one [`Account::Seen`], so that no other write waits for long.
pub const SEEN_MAX: usize = 1_000;

/// Carries account work out; the answer is JSON: the user, the first answer, or `{}`.
pub(super) async fn apply(scope: &mut Scope<'_>, account: &Account) -> Result<String, StoreError> {
    let now = scope.now;
    match account {
        Account::SignUp { code_hash, name, display_name, password_hash } => {
            let role = tokens::use_invite(scope.db, code_hash, now).await?;
            let role = role.ok_or_else(|| {
                forbidden(
                    "this invitation is unknown, used up or no longer valid; if you made your account with it, sign in",
                )
            })?;
            let user = make_user(scope, name, display_name.as_deref(), role, false).await?;
            users::set_password(scope.db, user.id, password_hash).await?;
            Ok(serde_json::to_string(&user).expect("a user has only string keys"))
        }
        Account::Add { name, display_name, role, password_hash, first } => {
            if *first && users::count(scope.db).await? > 0 {
                return Err(conflict("there are accounts already: ask an administrator for an invitation").into());
            }
            let user = make_user(scope, name, display_name.as_deref(), *role, false).await?;
            if let Some(hash) = password_hash {
                users::set_password(scope.db, user.id, hash).await?;
            }
            Ok(serde_json::to_string(&user).expect("a user has only string keys"))
        }
        Account::SignIn { user, proof, token, hash } => {
            lock_people(scope, *user, proof).await?;
            check(scope, *user, proof).await?;
            if users::active_role(scope.db, *user).await?.is_none() {
                return Err(not_found("user").into());
            }
            tokens::insert(scope.db, token, *user, hash).await?;
            Ok(serde_json::to_string(token).expect("a token has only string keys"))
        }
        Account::Prolong { tokens, until } => {
            let stale = until.plus_seconds(-PROLONGED_EVERY_S);
            for token in tokens {
                tokens::prolong(scope.db, *token, now, *until, stale).await?;
            }
            Ok("{}".to_owned())
        }
        Account::SignOut { user, token } => {
            if !tokens::revoke(scope, *user, *token).await? {
                return Err(not_found("session").into());
            }
            Ok("{}".to_owned())
        }
        Account::SetPassword { user, proof, hash, sign_out } => {
            lock_people(scope, *user, proof).await?;
            check(scope, *user, proof).await?;
            users::set_password(scope.db, *user, hash).await?;
            if *sign_out {
                tokens::revoke_all(scope, *user).await?;
            }
            Ok("{}".to_owned())
        }
        Account::EndStatuses => {
            // Who changes a user holds this: what is read here is not written over by what it was.
            events::lock(scope, StreamId::WORKSPACE).await?;
            for id in users::ended_status(scope.db, now).await? {
                end_status(scope, id).await?;
            }
            Ok("{}".to_owned())
        }
        Account::Seen { users } => {
            last_seen::keep(scope.db, users).await?;
            Ok("{}".to_owned())
        }
        Account::FirstAnswer { user, key, hash } => {
            let first = idempotency::find(scope.db, *user, key, hash).await?;
            Ok(first.map_or_else(|| NO_ANSWER.to_owned(), |first| Reply::repeated(first).json))
        }
        Account::KeepAnswer { user, key, hash, response } => {
            idempotency::keep(scope.db, *user, key, hash, response, now).await?;
            Ok("{}".to_owned())
        }
        Account::TakeOver { consumer } => Ok(consumers::take_over(scope, consumer).await?.to_string()),
        Account::KeepPlaces { consumer, epoch, places } => {
            consumers::keep(scope, consumer, *epoch, places).await?;
            Ok("{}".to_owned())
        }
        Account::Bury { consumer, epoch, event, reason, tries } => {
            consumers::bury(scope, consumer, *epoch, *event, (reason, *tries)).await?;
            Ok("{}".to_owned())
        }
        Account::DigUp { consumer, epoch, event } => {
            consumers::dig_up(scope, consumer, *epoch, *event).await?;
            Ok("{}".to_owned())
        }
        Account::Redrive { consumer, event } => {
            Ok(consumers::redrive(scope, consumer.as_deref(), *event).await?.to_string())
        }
        Account::Prune { what, before } => {
            let most = PRUNED_MAX as i64;
            let pruned = match what {
                Ended::Keys => idempotency::prune(scope.db, *before, most).await?,
                Ended::Tokens => tokens::prune(scope.db, *before, most).await?,
                Ended::Invites => tokens::prune_invites(scope.db, *before, most).await?,
            };
            Ok(serde_json::to_string(&Pruned { pruned }).expect("a count has only string keys"))
        }
    }
}

/// Locks whom a proof is about, and who gives it: whatever ends their sign-ins waits, or is seen.
async fn lock_people(scope: &mut Scope<'_>, user: UserId, proof: &Proof) -> Result<(), StoreError> {
    let mut people = vec![user];
    if matches!(proof, Proof::SignIn) {
        people.push(scope.caller.user_id);
    }
    users::lock(scope.db, &people).await
}

/// Refuses what is no longer proven.
async fn check(scope: &mut Scope<'_>, user: UserId, proof: &Proof) -> Result<(), StoreError> {
    let over = |why| Err(Refusal::new(Code::Unauthenticated, why).into());
    match proof {
        Proof::Operator => Ok(()),
        Proof::Password(known) => match users::password(scope.db, user).await? {
            Some(stored) if stored == *known => Ok(()),
            _ => over("the password was changed in the meantime"),
        },
        Proof::SignIn => match tokens::standing(scope.db, scope.caller.token_id, scope.now).await? {
            Some(sign_in) => Ok(permission::may_make_tokens(sign_in.principal, user)?),
            None => over("this sign-in is over"),
        },
    }
}

async fn end_status(scope: &mut Scope<'_>, id: UserId) -> Result<(), StoreError> {
    let Some(mut user) = users::by_id(scope.db, id).await? else { return Ok(()) };
    let over = |until: Option<Timestamp>| until.is_some_and(|until| until <= scope.now);
    if user.status.as_ref().is_some_and(|status| over(status.until)) {
        user.status = None;
    }
    if over(user.presence_until) {
        (user.presence_mode, user.presence_until) = (PresenceMode::Auto, None);
    }
    users::update(scope, &user).await?;
    events::append(scope, StreamId::WORKSPACE, EventKind::UserUpdated, &user).await?;
    Ok(())
}
