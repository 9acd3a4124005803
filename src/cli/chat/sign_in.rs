//! From what a person has to a token: one in COLINK_TOKEN, a name and password, or an invitation's code.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::client::{Client, Login};

/// What the hub's list of sign-ins shows of this one.
const LABEL: &str = "terminal chat";

/// Who one is to the hub.
pub(super) struct SignIn {
    pub(super) token: String,
    /// Whether it was made for this chat, and ends with it.
    pub(super) made_here: bool,
}

/// Signs in at the hub at `url`, asking for what is missing.
pub(super) async fn sign_in(url: &str, user: Option<String>, sign_up: bool) -> Result<SignIn> {
    if let (Some(token), false) = (variable("COLINK_TOKEN"), sign_up) {
        return Ok(SignIn { token, made_here: false });
    }
    let token = if sign_up { self::sign_up(url, user).await? } else { log_in(url, user).await? };
    Ok(SignIn { token, made_here: true })
}

async fn log_in(url: &str, user: Option<String>) -> Result<String> {
    let name = match user {
        Some(name) => name,
        None => ask("Name: ", "--user or COLINK_TOKEN")?,
    };
    let password = match variable("COLINK_PASSWORD") {
        Some(password) => password,
        None => ask_hidden(&format!("Password of {name}: "))?,
    };
    let body = json!({"name": name, "password": password, "label": LABEL});
    let login: Login = Client::new(url)?.post("/v1/auth/login", &body).await.context("cannot sign in")?;
    Ok(login.token)
}

async fn sign_up(url: &str, user: Option<String>) -> Result<String> {
    let code = ask("Invitation code: ", "a terminal")?;
    let name = match user {
        Some(name) => name,
        None => ask("Name: ", "--user")?,
    };
    let password = match variable("COLINK_PASSWORD") {
        Some(password) => password,
        None => {
            let first = ask_hidden("Choose a password: ")?;
            if ask_hidden("The same again: ")? != first {
                bail!("the two passwords are different");
            }
            first
        }
    };
    let body = json!({"code": code, "name": name, "password": password});
    let login: Login = Client::new(url)?.post("/v1/auth/signup", &body).await.context("cannot sign up")?;
    Ok(login.token)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Asks on standard error, so that standard output stays the conversation's.
fn ask(question: &str, instead: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("the input is no terminal to ask on: give {instead}");
    }
    let mut screen = std::io::stderr();
    screen.write_all(question.as_bytes())?;
    screen.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let answer = answer.trim();
    if answer.is_empty() {
        bail!("nothing was entered");
    }
    Ok(answer.to_owned())
}

fn ask_hidden(question: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("the input is no terminal to ask for a password on: set COLINK_PASSWORD or COLINK_TOKEN");
    }
    rpassword::prompt_password(question).context("cannot read the password")
}
