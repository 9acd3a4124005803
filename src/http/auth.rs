//! Who is asking: tokens, signing in and out, and what guards them.
//!
//! A token is opaque, 256 random bits behind `clk_`, kept only as a hash. It comes as `Authorization: Bearer` or as the
//! `colink_session` cookie, never in a URL; with a cookie, the request's Origin must be this server's or an allowed one.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{ARGON2ID_IDENT, Algorithm, Argon2, Block, Params as Argon2Params, Version, password_hash};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::channels::{ByTime, List, Paging, cut, page_size};
use super::endpoint::{Key, Params, json_response, reply_response, write};
use super::error::{Refused, refusal};
use crate::actors::Hub;
use crate::actors::session::too_many;
use crate::clock::Timestamp;
use crate::domain::command::{Invite, Principal};
use crate::domain::error::{Code, Refusal, forbidden, not_found, unavailable};
use crate::domain::id::{TokenId, UserId};
use crate::domain::permission::may_manage_users;
use crate::domain::rate::{Rate, Standing};
use crate::domain::user::{self, User};
use crate::storage::accounts::{Account, PROLONGED_EVERY_S, Proof, SYSTEM};
use crate::storage::tokens::{self, Identity, Secret, Token};
use crate::storage::writer::Work;
use crate::storage::{StoreError, users};

const COOKIE: &str = "colink_session";
/// As long as browsers keep one; it is the sign-in that ends.
const COOKIE_DAYS: i64 = 400;

fn unauthenticated() -> Refusal {
    Refusal::new(Code::Unauthenticated, "sign in first: send a valid token as `Authorization: Bearer …`")
}

/// Where a request's standing with its rate is noted, for the headers of its answer.
#[derive(Clone, Default)]
pub struct Standings(pub Arc<OnceLock<Standing>>);

/// Returns who is asking, within their rate.
pub async fn caller(hub: &Hub, request: &Parts) -> Result<Principal, Refusal> {
    let (token, from_cookie) = token_of(&request.headers).ok_or_else(unauthenticated)?;
    if from_cookie && request.method != Method::GET {
        same_origin(hub, &request.headers)?;
    }
    let principal = identify(hub, &token).await?;
    let rate = hub.config.limits.request_rate();
    let Some(standing) = hub.requests.ask(principal.user_id, rate, hub.clock.now()) else { return Ok(principal) };
    if let Some(Standings(noted)) = request.extensions.get() {
        let _ = noted.set(standing);
    }
    standing.wait.map_or(Ok(principal), |wait| Err(too_many(wait)))
}

/// Returns the token that a request carries, and whether it came in a cookie.
pub fn token_of(headers: &HeaderMap) -> Option<(String, bool)> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().ok()?;
        let token = text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("bearer "))?;
        return Some((token.trim().to_owned(), false));
    }
    let jar = CookieJar::from_headers(headers);
    jar.get(COOKIE).map(|cookie| (cookie.value().to_owned(), true))
}

/// Returns who a token speaks for. What was looked up is believed for `auth.cache_s`.
pub async fn identify(hub: &Hub, token: &str) -> Result<Principal, Refusal> {
    if token.len() > 128 {
        return Err(unauthenticated());
    }
    let hash = Secret::hash(token);
    let now = hub.clock.now();
    let valid = |expires: Option<Timestamp>| expires.is_none_or(|at| at > now);
    if let Some(known) = hub.cache.identity(&hash).filter(|known| valid(known.expires_at)) {
        prolong(hub, &hash, known).await;
        return Ok(known.principal);
    }
    let mark = hub.cache.mark_identity();
    let found = hub.store.in_half_the_time(async {
        let mut db = hub.store.read_for("sign_ins").await?;
        tokens::identify(&mut db, &hash, now).await
    });
    let found = found.await.map_err(refusal)?.ok_or_else(unauthenticated)?;
    hub.cache.keep_identity(mark, hash, found);
    prolong(hub, &hash, found).await;
    Ok(found.principal)
}

/// Moves the end of a sign-in that is used, if that is due.
async fn prolong(hub: &Hub, hash: &[u8; 32], known: Identity) {
    let until = hub.config.auth.session_until(hub.clock.now());
    let due = known.expires_at.is_some_and(|ends| ends < until.plus_seconds(-PROLONGED_EVERY_S));
    if !known.slides || !due {
        return;
    }
    // Before the write, so that requests beside this one do not write it too.
    hub.cache.prolong_identity(hash, until);
    let work = Account::Prolong { tokens: vec![known.principal.token_id], until };
    if let Err(error) = hub.writer.write(SYSTEM, Work::Account(work), None).await {
        let user = known.principal.user_id;
        tracing::warn!(user.id = %user, %error, "cannot prolong a sign-in: its next use tries again");
    }
}

/// Refuses a browser's request that comes from another site's page.
pub fn same_origin(hub: &Hub, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("");
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
    let same_host = origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host));
    let server = &hub.config.server;
    if same_host || origin == server.url() || server.allowed_origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    Err(forbidden("this origin is not allowed: add it to server.allowed_origins"))
}

// ---- passwords -----------------------------------------------------------------------------------------------------

/// Hashing takes memory by design: no more than this at once.
static HASHING: Semaphore = Semaphore::const_new(2);

/// The memory to hash in, while nobody hashes. Given back to the allocator, as much would stay with every thread that ever
/// hashed.
static MEMORY: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());

/// Returns the argon2id hash of a password under these parameters and with this salt.
fn argon2id(params: Argon2Params, password: &[u8], salt: Salt) -> Result<PasswordHash, password_hash::Error> {
    let kept = || MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut memory = kept().pop().unwrap_or_default();
    memory.resize(params.block_count(), Block::default());
    let mut out = [0; Output::MAX_LENGTH];
    let out = &mut out[..params.output_len().unwrap_or(Argon2Params::DEFAULT_OUTPUT_LEN).min(Output::MAX_LENGTH)];
    let text = ParamsString::try_from(&params)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hashed = argon2.hash_password_into_with_memory(password, &salt, out, &mut memory);
    kept().push(memory);
    hashed?;
    Ok(PasswordHash {
        algorithm: ARGON2ID_IDENT,
        version: Some(Version::V0x13.into()),
        params: text,
        salt: Some(salt),
        hash: Some(Output::new(out)?),
    })
}

/// Hashes a password under the configured parameters, with a salt of its own.
fn salted(auth: &crate::config::Auth, password: &str) -> Result<PasswordHash, password_hash::Error> {
    let (memory, passes, lanes) = (auth.argon2_memory_kib, auth.argon2_iterations, auth.argon2_parallelism);
    let params = Argon2Params::new(memory, passes, lanes, None).unwrap_or_default();
    argon2id(params, password.as_bytes(), Salt::generate())
}

/// Returns whether a password is the one that was hashed.
fn matches(password: &str, stored: &str) -> Result<bool, password_hash::Error> {
    let stored = PasswordHash::new(stored)?;
    let Some(salt) = stored.salt.filter(|_| stored.algorithm == ARGON2ID_IDENT) else { return Ok(false) };
    // Outputs are compared in constant time.
    Ok(argon2id(Argon2Params::try_from(&stored)?, password.as_bytes(), salt)?.hash == stored.hash)
}

/// Returns the argon2id hash of a password as a PHC string.
pub fn hash_password(auth: &crate::config::Auth, password: &str) -> Result<String, Refusal> {
    user::password(password)?;
    salted(auth, password)
        .map(|hash| hash.to_string())
        .map_err(|_| Refusal::new(Code::Internal, "cannot hash the password"))
}

async fn hash(hub: &Arc<Hub>, password: String) -> Result<String, Refusal> {
    let hub = hub.clone();
    hashing(move || hash_password(&hub.config.auth, &password)).await?
}

/// Returns the proof that a password is the one that was hashed, if it is.
async fn verify(hub: &Arc<Hub>, password: String, stored: Option<String>) -> Result<Option<Proof>, Refusal> {
    let hub = hub.clone();
    hashing(move || {
        let Some(stored) = stored else {
            // Somebody who is not there: the answer takes as long.
            let _ = salted(&hub.config.auth, &password);
            return None;
        };
        matches(&password, &stored).unwrap_or(false).then_some(Proof::Password(stored))
    })
    .await
}

/// Runs what hashes, in its turn. The turn goes along: a client that does not wait for its answer frees no place.
async fn hashing<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let turn = HASHING.acquire().await.map_err(|_| unavailable("the server is stopping"))?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(|_| Refusal::new(Code::Internal, "cannot hash the password"))
}

// ---- signing in and out --------------------------------------------------------------------------------------------

/// A name and a password.
#[derive(Deserialize, JsonSchema)]
pub struct Login {
    /// The handle.
    name: String,
    /// The password.
    password: String,
    /// Where from, such as the name of a client; shown in the list of sign-ins.
    #[serde(default)]
    label: String,
    /// Whether to set the `colink_session` cookie too, for browsers.
    #[serde(default)]
    cookie: bool,
}

/// A sign-in, with the secret that is shown this once.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct SignedIn {
    /// The token for `Authorization: Bearer`.
    pub token: String,
    /// Who is signed in.
    pub user: User,
    /// When the sign-in ends if it is not used until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// Returns what an address is counted as: one IPv6 client has a whole /64.
pub(super) fn counted(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
    }
}

/// Counts an attempt to guess a password, by name and by address.
fn attempt(hub: &Hub, from: IpAddr, name: &str) -> Result<(), Refusal> {
    let per_minute = hub.config.auth.logins_per_minute;
    let now = hub.clock.now();
    // An address may stand for a whole office behind one gateway.
    let of_address = Rate { per_minute: per_minute.saturating_mul(10), burst: per_minute.saturating_mul(10) };
    let of_name = Rate { per_minute, burst: per_minute };
    hub.sign_ins.take(counted(from).to_string(), of_address, now).map_err(too_many)?;
    // What nobody can be called is not remembered either: it may be as long as a body.
    if let Ok(name) = user::handle(name) {
        hub.sign_ins.take(format!("@{name}"), of_name, now).map_err(too_many)?;
    }
    Ok(())
}

/// `POST /v1/auth/login`
pub async fn login(hub: Arc<Hub>, from: IpAddr, body: Login) -> Result<Response, Refused> {
    attempt(&hub, from, &body.name)?;
    let found = match user::handle(&body.name) {
        Ok(name) => {
            let known = async { users::for_login(&mut hub.store.read().await?, &name).await };
            hub.store.in_half_the_time(known).await?
        }
        Err(_) => None,
    };
    let (id, stored) = found.map_or((None, None), |(id, hash)| (Some(id), hash));
    let proof = verify(&hub, body.password, stored).await?;
    let (Some(id), Some(proof)) = (id, proof) else {
        let why = "the name or the password is wrong";
        return Err(Refusal::new(Code::Unauthenticated, why).into());
    };
    signed_in(&hub, id, proof, &body.label, body.cookie).await
}

/// Makes a sign-in for a user and answers with it.
async fn signed_in(hub: &Arc<Hub>, id: UserId, proof: Proof, label: &str, cookie: bool) -> Result<Response, Refused> {
    let expires_at = Some(hub.config.auth.session_until(hub.clock.now()));
    let (Secret(secret), token) = new_token(hub, label, expires_at, true)?;
    let sign_in = Account::SignIn { user: id, proof, hash: Secret::hash(&secret), token };
    hub.writer.write(SYSTEM, Work::Account(sign_in), None).await?;
    let user = hub.store.in_half_the_time(async { users::by_id(&mut hub.store.read().await?, id).await }).await?;
    let user = user.ok_or_else(|| not_found("user"))?;
    let body = SignedIn { token: secret.clone(), user, expires_at };
    let bytes = serde_json::to_vec(&body).expect("a sign-in has only string keys");
    let mut response = json_response(StatusCode::OK, bytes.into());
    if cookie {
        set_cookie(hub, &mut response, secret, COOKIE_DAYS);
    }
    Ok(response)
}

fn set_cookie(hub: &Hub, response: &mut Response, value: String, days: i64) {
    let cookie = Cookie::build((COOKIE, value))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(hub.config.server.url().starts_with("https://"))
        .max_age(time::Duration::days(days))
        .build();
    if let Ok(value) = HeaderValue::from_str(&cookie.to_string()) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

/// Makes a token that ends at a time, or never.
fn new_token(hub: &Hub, label: &str, expires_at: Option<Timestamp>, slides: bool) -> Result<(Secret, Token), Refusal> {
    let label = user::one_line("label", label, 100)?;
    let now = hub.clock.now();
    Ok((Secret::generate("clk_"), Token { id: TokenId::new(now), label, created_at: now, expires_at, slides }))
}

/// An invitation's code and the account to make with it.
#[derive(Deserialize, JsonSchema)]
pub struct SignUp {
    /// The invitation's code.
    code: String,
    /// The handle.
    name: String,
    /// The password: 8 to 256 characters.
    password: String,
    /// The name shown; the handle, if left out.
    #[serde(default)]
    display_name: Option<String>,
    /// Whether to set the `colink_session` cookie too, for browsers.
    #[serde(default)]
    cookie: bool,
}

/// `POST /v1/auth/signup`
pub async fn sign_up(hub: Arc<Hub>, from: IpAddr, body: SignUp) -> Result<Response, Refused> {
    attempt(&hub, from, &body.name)?;
    let password_hash = hash(&hub, body.password).await?;
    let work = Account::SignUp {
        code_hash: Secret::hash(&body.code),
        name: body.name,
        display_name: body.display_name,
        password_hash: password_hash.clone(),
    };
    let reply = hub.writer.write(SYSTEM, Work::Account(work), None).await?;
    let user: User =
        serde_json::from_str(&reply.json).map_err(|_| Refusal::new(Code::Internal, "no user came back"))?;
    signed_in(&hub, user.id, Proof::Password(password_hash), "sign-up", body.cookie).await
}

/// Nothing.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Nothing {}

/// `POST /v1/auth/logout`
pub async fn logout(hub: Arc<Hub>, caller: Principal, _: Params, _: Nothing) -> Result<Response, Refused> {
    let work = Account::SignOut { user: caller.user_id, token: caller.token_id };
    hub.writer.write(SYSTEM, Work::Account(work), None).await?;
    let mut response = json_response(StatusCode::OK, "{}".into());
    set_cookie(&hub, &mut response, String::new(), 0);
    Ok(response)
}

/// A list that always fits on one page.
#[derive(Serialize, JsonSchema)]
pub struct Items<T> {
    /// The entries.
    pub items: Vec<T>,
}

/// `GET /v1/auth/sessions`
pub async fn sessions(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Token>, Refused> {
    let limit = page_size(&hub, paging.limit)?;
    let end = paging.cursor()?.map(|ByTime(at, id)| (at, id));
    let mut db = hub.store.read().await?;
    let found = tokens::of_user(&mut db, caller.user_id, hub.clock.now(), end, limit + 1).await?;
    Ok(cut(found, limit, |token| format!("{}_{}", token.created_at.0, token.id)))
}

/// `DELETE /v1/auth/sessions/{token_id}`
pub async fn end_session(
    hub: Arc<Hub>,
    caller: Principal,
    path: Params,
    _: Nothing,
    key: Option<Key>,
) -> Result<Response, Refused> {
    let work = Account::SignOut { user: caller.user_id, token: path.token()? };
    Ok(reply_response(StatusCode::OK, write(&hub, caller, work, key).await?))
}

/// The present password and the next.
#[derive(Deserialize, JsonSchema)]
pub struct ChangePassword {
    /// The present password.
    current: String,
    /// The next: 8 to 256 characters.
    new: String,
}

/// `PUT /v1/auth/password`: all of the caller's sign-ins end.
pub async fn change_password(
    hub: Arc<Hub>,
    caller: Principal,
    params: Params,
    body: ChangePassword,
) -> Result<Response, Refused> {
    let known = hub.store.in_half_the_time(async {
        let mut db = hub.store.read().await?;
        let found = users::by_id(&mut db, caller.user_id).await?.ok_or_else(|| not_found("user"))?;
        let stored = users::for_login(&mut db, &found.name).await?.and_then(|(_, hash)| hash);
        Ok::<_, StoreError>((found, stored))
    });
    let (found, stored) = known.await?;
    attempt(&hub, params.origin(), &found.name)?;
    let Some(proof) = verify(&hub, body.current, stored).await? else {
        return Err(forbidden("the present password is wrong").into());
    };
    let hash = hash(&hub, body.new).await?;
    let work = Account::SetPassword { user: caller.user_id, proof, hash, sign_out: true };
    hub.writer.write(SYSTEM, Work::Account(work), None).await?;
    Ok(json_response(StatusCode::OK, "{}".into()))
}

/// A token to be made.
#[derive(Deserialize, JsonSchema)]
pub struct NewToken {
    /// What it is for.
    #[serde(default)]
    label: String,
    /// How long it lasts; for ever, if left out.
    #[serde(default)]
    expires_in_s: Option<i64>,
}

/// A new sign-in, and its secret, shown this once.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct MadeToken {
    /// The sign-in.
    #[serde(flatten)]
    pub sign_in: Token,
    /// The token; left out in the answer to a repeat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<String>,
}

/// `POST /v1/users/{user_id}/tokens`: for oneself, or for others as an administrator.
pub async fn make_token(
    hub: Arc<Hub>,
    caller: Principal,
    path: Params,
    body: NewToken,
    key: Option<Key>,
) -> Result<Response, Refused> {
    let expires_at = body.expires_in_s.map(|s| hub.clock.now().plus_seconds(s.max(1)));
    let (Secret(secret), token) = new_token(&hub, &body.label, expires_at, false)?;
    let sign_in = Account::SignIn { user: path.user()?, proof: Proof::SignIn, hash: Secret::hash(&secret), token };
    let mut reply = write(&hub, caller, sign_in, key).await?;
    let sign_in =
        serde_json::from_str(&reply.json).map_err(|_| Refusal::new(Code::Internal, "no sign-in came back"))?;
    let made = MadeToken { sign_in, token: (!reply.duplicate).then_some(secret) };
    reply.json = serde_json::to_string(&made).expect("a token has only string keys");
    Ok(reply_response(StatusCode::CREATED, reply))
}

/// `GET /v1/invites`
pub async fn invites(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Invite>, Refused> {
    may_manage_users(caller.role)?;
    let limit = page_size(&hub, paging.limit)?;
    let mut db = hub.store.read().await?;
    let found = tokens::open_invites(&mut db, hub.clock.now(), paging.cursor()?, limit + 1).await?;
    Ok(cut(found, limit, |invite| invite.id.to_string()))
}
