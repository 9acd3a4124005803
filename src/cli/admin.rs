//! `migrate`, `user`, `channel`, `token`: administration, on a stopped or a running server.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::Settings;
use super::door::Door;
use crate::app;
use crate::clock::Clock;
use crate::domain::channel::{Channel, ChannelRole};
use crate::domain::command as c;
use crate::domain::id::{ChannelId, TokenId};
use crate::domain::user::{Role, User};
use crate::http::auth::hash_password;
use crate::storage::accounts::{Account, Proof};
use crate::storage::tokens::{self, Secret, Token};
use crate::storage::{channels, newest_migration, users};

/// Where, and how to print.
#[derive(Args)]
pub(super) struct Common {
    #[command(flatten)]
    settings: Settings,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    async fn door(&self) -> Result<Door> {
        Door::open(self.settings.load()?).await
    }

    fn print(&self, made: &Value, text: &str) {
        if self.json { println!("{made}") } else { println!("{text}") }
    }
}

#[derive(Subcommand)]
pub(super) enum UserCommand {
    /// Make an account
    Add {
        /// The handle: 2 to 32 of a-z, 0-9, dot, dash, underscore
        name: String,
        /// The name shown
        #[arg(long)]
        display_name: Option<String>,
        /// Make it an administrator
        #[arg(long, conflicts_with = "role")]
        admin: bool,
        /// The role: guest, member, moderator or admin
        #[arg(long, default_value = "member")]
        role: Role,
        /// Read the password from standard input; without it the account can only use tokens
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        common: Common,
    },
    /// List accounts
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Set a password and end all sign-ins
    Password {
        /// Whose
        name: String,
        /// Read the password from standard input rather than ask for it
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Give a user a role
    Role {
        /// Whose
        name: String,
        /// guest, member, moderator or admin
        role: Role,
        #[command(flatten)]
        common: Common,
    },
    /// Deactivate an account: its sessions end, what it wrote stays
    Deactivate {
        /// Whose
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Bring an account back
    Reactivate {
        /// Whose
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Make an invitation: whoever has its code can sign up
    Invite {
        /// The role that they get
        #[arg(long, default_value = "member")]
        role: Role,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: i64,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) async fn migrate(settings: Settings) -> Result<()> {
    let config = settings.load()?;
    // Shown on a terminal alone.
    let spinner = ProgressBar::new_spinner().with_message("bringing the schema up to date");
    spinner.tick();
    spinner.enable_steady_tick(Duration::from_millis(100));
    let opened = app::open_store(&config).await;
    spinner.finish_and_clear();
    let store = opened?;
    println!("the schema is at version {} on {}", newest_migration(), store.version().await?);
    store.close().await;
    Ok(())
}

pub(super) async fn user(command: UserCommand) -> Result<()> {
    match command {
        UserCommand::Add { name, display_name, admin, role, password_stdin, common } => {
            let role = if admin { Role::Admin } else { role };
            let door = common.door().await?;
            let password_hash = match password_stdin {
                true => Some(hash_password(&door.config.auth, &read_stdin()?)?),
                false => None,
            };
            let user: User =
                door.account(Account::Add { name, display_name, role, password_hash, first: false }).await?;
            common.print(&json!({"id": user.id, "name": user.name}), &format!("made {} ({})", user.name, user.role));
            if !password_stdin && !common.json {
                eprintln!("no password is set: `colink user password {0}` or `colink token add --user {0}`", user.name);
            }
        }
        UserCommand::List { common } => list_users(&common).await?,
        UserCommand::Password { name, password_stdin, common } => {
            let door = common.door().await?;
            let user = door.user(&name).await?;
            let password = if password_stdin { read_stdin()? } else { ask_password()? };
            let hash = hash_password(&door.config.auth, &password)?;
            let _: Value = door
                .account(Account::SetPassword { user: user.id, proof: Proof::Operator, hash, sign_out: true })
                .await?;
            common.print(&json!({"id": user.id}), &format!("set the password of {}", user.name));
        }
        UserCommand::Role { name, role, common } => {
            let door = common.door().await?;
            let user_id = door.user(&name).await?.id;
            let user: User = door.command(&door.an_admin().await?, c::SetUserRole { user_id, role }, None).await?;
            common.print(&json!({"id": user.id, "role": user.role}), &format!("{} is now {}", user.name, user.role));
        }
        UserCommand::Deactivate { name, common } => {
            let door = common.door().await?;
            let user_id = door.user(&name).await?.id;
            let user: User = door.command(&door.an_admin().await?, c::DeactivateUser { user_id }, None).await?;
            common.print(&json!({"id": user.id}), &format!("deactivated {}", user.name));
        }
        UserCommand::Reactivate { name, common } => {
            let door = common.door().await?;
            let user_id = door.user(&name).await?.id;
            let user: User = door.command(&door.an_admin().await?, c::ReactivateUser { user_id }, None).await?;
            common.print(&json!({"id": user.id}), &format!("brought {} back", user.name));
        }
        UserCommand::Invite { role, uses, common } => {
            let door = common.door().await?;
            let create = c::CreateInvite { role: Some(role), max_uses: Some(uses), expires_in_s: None };
            let invite: c::Invite = door.command(&door.an_admin().await?, create, None).await?;
            let code = invite.code.unwrap_or_default();
            common.print(&json!({"id": invite.id, "code": code}), &format!("invitation for {uses} {role}: {code}"));
        }
    }
    Ok(())
}

async fn list_users(common: &Common) -> Result<()> {
    let door = common.door().await?;
    let mut after = String::new();
    loop {
        let mut db = door.store.read().await?;
        let page = users::list(&mut db, &after, 200).await?;
        drop(db);
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.name);
        for user in page {
            let state = if user.deactivated_at.is_some() { "deactivated" } else { "active" };
            let text = format!("{:<32} {:<10} {state:<12} {}", user.name, user.role, user.display_name);
            common.print(&serde_json::to_value(&user)?, &text);
        }
    }
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().take(4_096).read_to_string(&mut text).context("cannot read the password")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask_password() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal: give --password-stdin");
    }
    let first = rpassword::prompt_password("New password: ")?;
    if rpassword::prompt_password("Once more: ")? != first {
        bail!("the two are not the same");
    }
    Ok(first)
}

#[derive(Subcommand)]
pub(super) enum ChannelCommand {
    /// Make a channel
    Add {
        /// The name
        name: String,
        /// By invitation only
        #[arg(long)]
        private: bool,
        /// Who is in it; the first is its owner, or else the first administrator
        #[arg(long = "member", value_name = "NAME")]
        members: Vec<String>,
        /// What it is for
        #[arg(long, default_value = "")]
        purpose: String,
        #[command(flatten)]
        common: Common,
    },
    /// List public and private channels
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Archive a channel: it stays readable and takes no changes
    Archive {
        /// Its name
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Take a channel out of the archive
    Unarchive {
        /// Its name
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Give a member a role in a channel
    Role {
        /// The channel's name
        name: String,
        /// Whose
        user: String,
        /// member, moderator or owner
        role: ChannelRole,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) async fn channel(command: ChannelCommand) -> Result<()> {
    match command {
        ChannelCommand::Add { name, private, members, purpose, common } => {
            let door = common.door().await?;
            let mut people = Vec::new();
            for member in &members {
                people.push(door.user(member).await?);
            }
            let owner = match people.first() {
                Some(user) => user.clone(),
                None => door.an_admin().await?,
            };
            let members = people.iter().map(|user| user.id).collect();
            let create = c::CreateChannel { name, private, topic: String::new(), purpose, members };
            let made: Channel = door.command(&owner, create, None).await?;
            let text = format!("made #{} ({})", made.name.as_deref().unwrap_or(""), made.kind);
            common.print(&json!({"id": made.id, "name": made.name}), &text);
        }
        ChannelCommand::List { common } => {
            let door = common.door().await?;
            let mut after = String::new();
            loop {
                let mut db = door.store.read().await?;
                let page = channels::list(&mut db, &after, 200).await?;
                drop(db);
                let Some(last) = page.last() else { return Ok(()) };
                after = last.name.clone().unwrap_or_default();
                for channel in page {
                    let name = channel.name.as_deref().unwrap_or("");
                    let state = if channel.archived_at.is_some() { "archived" } else { "active" };
                    let (kind, messages) = (channel.kind, channel.last_message_no);
                    let text = format!("#{name:<40} {kind:<8} {state:<8} {messages:>8} messages  {}", channel.purpose);
                    common.print(&serde_json::to_value(&channel)?, &text);
                }
            }
        }
        ChannelCommand::Archive { name, common } => {
            let (door, channel_id) = find(&common, &name).await?;
            let _: c::Done = door.operate(c::ArchiveChannel { channel_id }).await?;
            common.print(&json!({"id": channel_id}), &format!("archived #{name}"));
        }
        ChannelCommand::Unarchive { name, common } => {
            let (door, channel_id) = find(&common, &name).await?;
            let _: c::Done = door.operate(c::UnarchiveChannel { channel_id }).await?;
            common.print(&json!({"id": channel_id}), &format!("took #{name} out of the archive"));
        }
        ChannelCommand::Role { name, user, role, common } => {
            let (door, channel_id) = find(&common, &name).await?;
            let user_id = door.user(&user).await?.id;
            let set: Result<c::Done> = door.operate(c::SetChannelRole { channel_id, user_id, role }).await;
            set.with_context(|| format!("cannot make {user} {role} of #{name}"))?;
            common.print(&json!({"id": channel_id, "role": role}), &format!("{user} is now {role} of #{name}"));
        }
    }
    Ok(())
}

async fn find(common: &Common, name: &str) -> Result<(Door, ChannelId)> {
    let door = common.door().await?;
    let mut db = door.store.read().await?;
    let found = channels::by_name(&mut db, &name.trim_start_matches('#').to_lowercase()).await?;
    drop(db);
    let channel = found.with_context(|| format!("there is no channel `{name}`: `colink channel list` shows them"))?;
    Ok((door, channel.id))
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token that signs a user in; it is shown this once
    Add {
        /// Whose
        #[arg(long)]
        user: String,
        /// What it is for
        #[arg(long, default_value = "command line")]
        label: String,
        /// How many days it lasts; for ever, if left out
        #[arg(long)]
        days: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// List a user's tokens and sign-ins, newest first
    List {
        /// Whose
        #[arg(long)]
        user: String,
        #[command(flatten)]
        common: Common,
    },
    /// End one token or sign-in, and its open connections
    Revoke {
        /// Which, as `token list` shows it
        id: TokenId,
        /// Whose
        #[arg(long)]
        user: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) async fn token(command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Add { user, label, days, common } => {
            let door = common.door().await?;
            let user = door.user(&user).await?.id;
            let now = Clock::default().now();
            let expires_at = days.map(|days| now.plus_seconds(days.max(1).saturating_mul(86_400)));
            let id = TokenId::new(now);
            let token = Token { id, label, created_at: now, expires_at, slides: false };
            let secret = Secret::generate("clk_");
            let (proof, hash) = (Proof::Operator, Secret::hash(&secret.0));
            let _: Value = door.account(Account::SignIn { user, proof, token, hash }).await?;
            common.print(&json!({"id": id, "token": secret.0}), &secret.0);
        }
        TokenCommand::List { user, common } => list_tokens(&common, &user).await?,
        TokenCommand::Revoke { id, user, common } => {
            let door = common.door().await?;
            let owner = door.user(&user).await?.id;
            let ended: Result<Value> = door.account(Account::SignOut { user: owner, token: id }).await;
            ended.with_context(|| format!("cannot end {id} of {user}: `colink token list` shows what there is"))?;
            common.print(&json!({"id": id}), &format!("ended {id} of {user}"));
        }
    }
    Ok(())
}

async fn list_tokens(common: &Common, user: &str) -> Result<()> {
    let door = common.door().await?;
    let (user, now) = (door.user(user).await?.id, Clock::default().now());
    let mut end = None;
    loop {
        let mut db = door.store.read().await?;
        let page = tokens::of_user(&mut db, user, now, end, 200).await?;
        drop(db);
        let Some(last) = page.last() else { return Ok(()) };
        end = Some((last.created_at, last.id));
        for token in page {
            let ends = token.expires_at.map_or("never".to_owned(), |at| at.to_string());
            let text = format!("{}  {:<27}  {ends:<27}  {}", token.id, token.created_at.to_string(), token.label);
            common.print(&serde_json::to_value(&token)?, &text);
        }
    }
}
