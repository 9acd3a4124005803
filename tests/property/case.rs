//! One case: people and clients who do what the plan says, on a node and on the model, and a look at everything at the end.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use colink::domain::command::Command;
use colink::domain::id::{ChannelId, StreamId};
use colink::domain::user::Role;
use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::client::{Back, Client, Outcome};
use crate::http::Answer as Http;
use crate::model::{Answer, Model, Person as Somebody, Stream};
use crate::plan::{self, Act, CLIENTS, Door, How, Step, Text, View, Who, owner_of};
use crate::view::{plain, shown_event, unordered};
use crate::world::{Person, World};

/// Who is there, and their role in the workspace.
const PEOPLE: [(&str, Role); plan::PEOPLE as usize] = [
    ("ana", Role::Member),
    ("bob", Role::Member),
    ("mod", Role::Moderator),
    ("adm", Role::Admin),
    ("gus", Role::Guest),
];

/// What was met on the way, to see that a run reaches what it is about.
#[derive(Default, Debug)]
pub(crate) struct Met {
    pub(crate) done: BTreeMap<&'static str, usize>,
    pub(crate) refused: BTreeMap<String, usize>,
    pub(crate) repeats: usize,
    pub(crate) from_memory: usize,
    pub(crate) from_log: usize,
    pub(crate) restarts: usize,
    pub(crate) heard: usize,
}

/// What a client may be sent beyond what it hears live, and what it is not owed although it was there.
#[derive(Default)]
struct Owed {
    /// The log gives everything behind a cursor. What happened while the user was away from the channel comes with it,
    /// and the client drops it.
    replayed: BTreeSet<(StreamId, i64)>,
    /// Of a channel that it was removed from while nobody kept its session.
    excused: BTreeSet<(StreamId, i64)>,
}

/// A running case.
pub(crate) struct Case<'a> {
    world: &'a mut World,
    met: &'a mut Met,
    people: Vec<Person>,
    clients: Vec<Client>,
    owed: Vec<Owed>,
    model: Model,
}

impl<'a> Case<'a> {
    /// Makes this case's own people, two channels, and connects everybody.
    pub(crate) async fn begin(
        world: &'a mut World,
        met: &'a mut Met,
        name: &str,
        patience: Duration,
    ) -> Outcome<Case<'a>> {
        let mut people = Vec::new();
        for (who, role) in PEOPLE {
            people.push(world.person(&format!("{who}-{name}"), role).await);
        }
        let whos = people.iter().map(|p| Somebody { id: p.id(), name: p.user.name.clone(), role: p.user.role });
        let path = format!("/v1/streams/{}/events?limit=1", StreamId::WORKSPACE);
        let head = people[0].http.get(&path).await.good()["head"].as_i64().unwrap();
        let model = Model::new(name, whos.collect(), head);
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            let (_, role) = PEOPLE[usize::from(owner_of(n))];
            clients.push(Client::new(people[usize::from(owner_of(n))].clone(), role == Role::Guest, patience));
        }
        let owed = clients.iter().map(|_| Owed::default()).collect();
        let mut case = Case { world, met, people, clients, owed, model };
        for n in 0..CLIENTS {
            case.returns(n, How::Anew).await?;
        }
        case.does(0, Door::Rest, &Act::Create { name: 0, private: false, with: vec![1, 3, 4] }).await?;
        case.does(1, Door::Rest, &Act::Create { name: 1, private: true, with: vec![0, 2, 3] }).await?;
        Ok(case)
    }

    /// Goes through a plan, and looks at everything at its end.
    pub(crate) async fn run(&mut self, steps: &[Step]) -> Outcome {
        for (n, step) in steps.iter().enumerate() {
            self.step(step).await.map_err(|wrong| format!("step {n}, {step:?}: {wrong}"))?;
        }
        self.end().await.map_err(|wrong| format!("at the end: {wrong}"))
    }

    async fn step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Does(who, door, act) => self.does(who.find(&self.model, act), *door, act).await,
            Step::SendsAgain { nth, door, other_text } => self.sends_again(*nth, *door, *other_text).await,
            Step::CutWhileSending { client, channel, text } => self.cut_while_sending(*client, *channel, *text).await,
            Step::Together(acts) => self.together(acts, None).await,
            Step::ReturnsAmid(client, how, acts) => self.together(acts, Some((*client, *how))).await,
            Step::Looks(who, view) => self.looks(*who, view).await,
            Step::Cut(client) => {
                self.clients[usize::from(*client)].cut();
                Ok(())
            }
            Step::Returns(client, how) => self.returns(*client, *how).await,
            Step::Hears(client) => self.hears(*client).await,
            Step::Restart(back) => self.restart(back).await,
        }
    }

    // ---- commands ------------------------------------------------------------------------------------------------------

    async fn does(&mut self, who: u8, door: Door, act: &Act) -> Outcome {
        match act.command(&self.model) {
            Some(command) => self.runs(who, door, &command).await,
            None => Ok(()),
        }
    }

    async fn runs(&mut self, who: u8, door: Door, command: &Command) -> Outcome {
        let connected = (0..CLIENTS).find(|n| owner_of(*n) == who && self.clients[usize::from(*n)].is_connected());
        let answer = match (door, connected) {
            (Door::Gateway, Some(client)) => {
                let client = &mut self.clients[usize::from(client)];
                let id = client.asks(command.name(), &body(command)).await;
                client.answer(id, &format!("the answer to {}", command.name())).await?
            }
            _ => answer_of(&self.people[usize::from(who)].http.command(command, None).await),
        };
        self.concludes(who, command, &answer)
    }

    /// Has the model carry out what the node has, and compares the answers.
    fn concludes(&mut self, who: u8, command: &Command, answer: &Answer) -> Outcome {
        let expected = expect(&mut self.model, who, command, answer);
        if !agree(&expected, answer) {
            return Err(format!("{} {} is answered {answer:?}, not {expected:?}", command.name(), command.body()));
        }
        match expected {
            Ok(expected) => {
                *self.met.done.entry(command.name()).or_default() += 1;
                self.met.repeats += usize::from(expected["duplicate"] == true);
            }
            Err(code) => *self.met.refused.entry(code).or_default() += 1,
        }
        Ok(())
    }

    async fn sends_again(&mut self, nth: u8, door: Door, other_text: bool) -> Outcome {
        let keyed = &self.model.keyed;
        let Some(at) = usize::from(nth).checked_rem(keyed.len()) else { return Ok(()) };
        let (who, mut send) = keyed[at].clone();
        if other_text {
            send.text.push_str(" and more");
        }
        let who = self.model.number_of(who).unwrap();
        self.runs(who, door, &send.into()).await
    }

    async fn cut_while_sending(&mut self, n: u8, channel: u8, text: Text) -> Outcome {
        let key = Some(u8::try_from(self.model.keyed.len() % 100).unwrap() + 100);
        let Some(command) = (Act::Send { channel, text, key }).command(&self.model) else { return Ok(()) };
        let client = &mut self.clients[usize::from(n)];
        // A send that is refused might come late, when it is not refused any more: only one that succeeds is repeated.
        let room = self.model.nth_channel(channel).unwrap();
        let may = room.members.contains_key(&client.person.id()) && !room.archived;
        if !client.is_connected() || !may || room.posting != colink::domain::channel::Posting::Everyone {
            return Ok(());
        }
        client.asks(command.name(), &body(&command)).await;
        client.cut();
        let mut answer = answer_of(&client.person.http.command(&command, None).await);
        if let Ok(answer) = &mut answer {
            // Either of the two may have been the first.
            answer["duplicate"] = json!(false);
        }
        self.concludes(owner_of(n), &command, &answer)
    }

    async fn together(&mut self, acts: &[(Who, Door, Act)], returning: Option<(u8, How)>) -> Outcome {
        let mut commands = Vec::new();
        for (who, door, act) in acts {
            let who = who.find(&self.model, act);
            commands.extend(act.command(&self.model).map(|command| (who, *door, command)));
        }
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for (at, (who, door, command)) in commands.iter().enumerate() {
            let client = &mut self.clients[usize::from(*who)];
            let stays = returning.is_none_or(|(n, _)| n != *who) && client.is_connected();
            if *door == Door::Gateway && stays {
                asked.push((at, client.asks(command.name(), &body(command)).await));
            }
            // What has a key goes by both doors at once.
            if *door == Door::Rest || !stays || has_key(command) {
                let http = self.people[usize::from(*who)].http.clone();
                requests.push(async move { (at, answer_of(&http.command(command, None).await)) });
            }
        }
        let heads = self.heads();
        let coming = async {
            match returning {
                Some((n, how)) => Some((n, self.clients[usize::from(n)].returns(how).await)),
                None => None,
            }
        };
        let (mut answers, back) = join(join_all(requests), coming).await;
        for (at, id) in asked {
            let (who, _, command) = &commands[at];
            let what = format!("the answer to {}, asked at the same time as others", command.name());
            answers.push((at, self.clients[usize::from(*who)].answer(id, &what).await?));
        }
        self.happened(&commands, answers)?;
        match back {
            Some((n, back)) => self.came_back(n, back, &heads),
            None => Ok(()),
        }
    }

    /// Finds an order in which what was asked at once can have happened: events are in the order of their numbers, and
    /// what changed nothing was answered somewhere in between.
    fn happened(&mut self, commands: &[(u8, Door, Command)], answers: Vec<(usize, Answer)>) -> Outcome {
        let number = |answer: &Answer| {
            let answer = answer.as_ref().ok().filter(|answer| answer["duplicate"] != true)?;
            answer["seq"].as_i64()
        };
        let (mut changes, mut others): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(_, answer)| number(answer).is_some());
        changes.sort_by_key(|(_, answer)| number(answer));
        for change in changes.into_iter().map(Some).chain([None]) {
            for (at, answer) in std::mem::take(&mut others) {
                let (who, _, command) = &commands[at];
                if agree(&expect(&mut self.model.clone(), *who, command, &answer), &answer) {
                    self.concludes(*who, command, &answer)?;
                } else {
                    others.push((at, answer));
                }
            }
            if let Some((at, answer)) = change {
                self.concludes(commands[at].0, &commands[at].2, &answer)?;
            }
        }
        match others.pop() {
            Some((at, answer)) => {
                let (who, _, command) = &commands[at];
                self.concludes(*who, command, &answer).map_err(|wrong| format!("at the same time as others, {wrong}"))
            }
            None => Ok(()),
        }
    }

    async fn looks(&mut self, who: u8, view: &View) -> Outcome {
        let person = self.model.person(who).id;
        let (Some(path), Some(expected)) = (view.path(&self.model), self.model.see(person, view)) else {
            return Ok(());
        };
        let answer = self.people[usize::from(who)].http.get(&path).await;
        let seen = answer_of(&answer).map(|seen| sorted(view, plain(&seen)));
        let expected = expected.map(|expected| sorted(view, expected));
        if seen == expected {
            return Ok(());
        }
        Err(format!(
            "{} reads {path}\n  and sees {}\n  and not  {}",
            self.model.person(who).name,
            text(&seen),
            text(&expected)
        ))
    }

    // ---- clients -------------------------------------------------------------------------------------------------------

    async fn returns(&mut self, n: u8, how: How) -> Outcome {
        let back = self.clients[usize::from(n)].returns(how).await;
        let heads = self.heads();
        self.came_back(n, back, &heads)
    }

    fn heads(&self) -> BTreeMap<StreamId, i64> {
        self.model.streams.iter().map(|(id, stream)| (*id, stream.head())).collect()
    }

    /// Notes what a client is owed from now on. While it came back, streams may have gone on from where they were before.
    fn came_back(&mut self, n: u8, back: Outcome<Back>, before: &BTreeMap<StreamId, i64>) -> Outcome {
        let back = back.map_err(|wrong| format!("client {n} comes back: {wrong}"))?;
        let heads = self.heads();
        let (client, owed) = (&mut self.clients[usize::from(n)], &mut self.owed[usize::from(n)]);
        let me = client.person.id();
        match back {
            Back::Buffer => self.met.from_memory += 1,
            Back::Ready(state) => {
                *owed = Owed::default();
                client.from.clone_from(&heads);
                client.from.extend(client.began.clone());
                let mine = self.model.see(me, &View::Mine).unwrap().unwrap();
                if heads == *before && plain(&state["channels"]) != mine["items"] {
                    return Err(format!("ready says {state}, not {mine}"));
                }
                for (id, at) in &client.began {
                    if !(before[id]..=heads[id]).contains(at) {
                        return Err(format!("ready says that {id} is at {at}, not {} to {}", before[id], heads[id]));
                    }
                }
            }
            Back::Log(cursors, replayed) => {
                self.met.from_log += 1;
                let (mut least, mut most) = (0, 0);
                for (id, head) in &heads {
                    let room = self.model.channel((*id).into());
                    let mine =
                        room.is_none_or(|room| room.members.contains_key(&me)) && self.model.is_for(me, *id, *head);
                    if mine && let Some(cursor) = cursors.get(id) {
                        (least, most) = (least + before[id] - cursor, most + head - cursor);
                        owed.replayed.extend((cursor + 1..=*head).map(|seq| (*id, seq)));
                    } else if !mine {
                        owed.excused.extend((1..=*head).map(|seq| (*id, seq)));
                    } else if let Some(room) = room {
                        // It was brought in while it was away, and reads from there.
                        owed.excused.extend((1..room.came(me)).map(|seq| (*id, seq)));
                    }
                }
                if !(least..=most).contains(&replayed) {
                    return Err(format!(
                        "client {n} missed {least} to {most} events and is told that {replayed} follow"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns whether a client has to hear an event, and whether it may.
    fn due(&self, n: usize, stream: StreamId, seq: i64) -> (bool, bool) {
        let (client, owed) = (&self.clients[n], &self.owed[n]);
        let live = self.model.is_for(client.person.id(), stream, seq);
        let replayed = owed.replayed.contains(&(stream, seq));
        let since = client.from.get(&stream).is_none_or(|from| seq > *from);
        (since && live && !owed.excused.contains(&(stream, seq)), live || replayed)
    }

    async fn hears(&mut self, n: u8) -> Outcome {
        let at = usize::from(n);
        if !self.clients[at].is_connected() {
            return Ok(());
        }
        while let Some((stream, seq)) = self.first_missing(at) {
            let kind = self.model.streams[&stream].entry(seq).unwrap().kind;
            let client = &mut self.clients[at];
            let what = format!("{kind} {seq} of {stream}, with its cursor at {:?}", client.cursors.get(&stream));
            let frame = client.next(&what).await.map_err(|wrong| format!("client {n}: {wrong}"))?;
            client.take(frame).map_err(|wrong| format!("client {n}: {wrong}"))?;
        }
        self.compare(at).map_err(|wrong| format!("client {n}: {wrong}"))
    }

    fn first_missing(&self, n: usize) -> Option<(StreamId, i64)> {
        for (id, stream) in &self.model.streams {
            let heard: HashSet<i64> =
                self.clients[n].heard.get(id).into_iter().flatten().filter_map(|event| event["seq"].as_i64()).collect();
            let missing =
                (stream.base + 1..=stream.head()).find(|seq| !heard.contains(seq) && self.due(n, *id, *seq).0);
            if let Some(seq) = missing {
                return Some((*id, seq));
            }
        }
        None
    }

    /// What a client applied is what happened, each event once and in order, and nothing came that was not for it.
    fn compare(&self, n: usize) -> Outcome {
        let client = &self.clients[n];
        for (id, seq) in &client.arrived {
            let known = self.model.streams.get(id).is_some_and(|stream| stream.entry(*seq).is_some());
            if known && !self.due(n, *id, *seq).1 {
                return Err(format!("it was sent {seq} of {id}, which is not for it"));
            }
        }
        for (id, heard) in &client.heard {
            let Some(stream) = self.model.streams.get(id) else { return Err(format!("it hears {heard:?} of nowhere")) };
            let mut last = 0;
            for event in heard {
                let seq = event["seq"].as_i64().unwrap();
                if seq <= last {
                    return Err(format!("it applied {seq} behind {last}: {event}"));
                }
                last = seq;
                if !self.model.is_for(client.person.id(), *id, seq) {
                    return Err(format!("it applied what happened while it was not there: {event}"));
                }
                same_event(*id, stream, seq, event)?;
            }
        }
        Ok(())
    }

    async fn restart(&mut self, back: &[u8]) -> Outcome {
        self.met.restarts += 1;
        self.world.restart().await;
        for (n, client) in self.clients.iter_mut().enumerate() {
            client.reads_to_the_end().await.map_err(|wrong| format!("client {n}: {wrong}"))?;
        }
        for n in back {
            self.returns(*n, How::Session).await?;
        }
        Ok(())
    }

    // ---- the end -------------------------------------------------------------------------------------------------------

    async fn end(&mut self) -> Outcome {
        for n in 0..CLIENTS {
            if !self.clients[usize::from(n)].is_connected() {
                let how = if n % 2 == 0 { How::Session } else { How::Cursors };
                self.returns(n, how).await?;
            }
            self.hears(n).await?;
        }
        for n in 0..self.clients.len() {
            self.clients[n].reads_what_is_there().await.map_err(|wrong| format!("client {n}: {wrong}"))?;
            self.compare(n).map_err(|wrong| format!("client {n}: {wrong}"))?;
            self.met.heard += self.clients[n].heard.values().map(Vec::len).sum::<usize>();
        }
        for channel in 0..u8::try_from(self.model.rooms.len()).unwrap() {
            self.logs_agree(channel).await?;
            self.views_agree(channel).await?;
        }
        for who in 0..plan::PEOPLE {
            self.own_log_agrees(who).await?;
            for view in [View::Mine, View::Threads] {
                self.looks(who, &view).await?;
            }
        }
        Ok(())
    }

    /// The log over REST is dense and what the model has, and what clients heard is of it, down to the identifiers.
    async fn logs_agree(&mut self, channel: u8) -> Outcome {
        let reader = self.reader_of(channel);
        for who in 0..plan::PEOPLE {
            self.looks(who, &View::Events(channel, 0)).await?;
        }
        let Some(reader) = reader else { return Ok(()) };
        let path = View::Events(channel, 0).path(&self.model).unwrap();
        let stored = self.people[usize::from(reader)].http.get(&path).await.items();
        let id: StreamId = self.model.nth_channel(channel).unwrap().id.into();
        for (n, client) in self.clients.iter().enumerate() {
            for event in client.heard.get(&id).into_iter().flatten() {
                let at = usize::try_from(event["seq"].as_i64().unwrap() - 1).unwrap();
                if stored[at]["event_id"] != event["event_id"] || stored[at]["at"] != event["at"] {
                    return Err(format!("client {n} heard {event}, and stored is {}", stored[at]));
                }
            }
        }
        Ok(())
    }

    fn reader_of(&self, channel: u8) -> Option<u8> {
        let room = self.model.nth_channel(channel)?;
        (0..plan::PEOPLE).find(|who| self.model.known(self.model.person(*who).id, room.id).is_ok())
    }

    async fn views_agree(&mut self, channel: u8) -> Outcome {
        for who in 0..plan::PEOPLE {
            self.looks(who, &View::Channel(channel)).await?;
        }
        let Some(reader) = self.reader_of(channel) else { return Ok(()) };
        let room = self.model.nth_channel(channel).unwrap();
        let head = u8::try_from(self.model.head_of(room)).unwrap_or(u8::MAX);
        let messages = u8::try_from(room.messages.len()).unwrap_or(u8::MAX);
        let mut views = vec![View::Members(channel), View::Pins(channel), View::Newest(channel, 200)];
        // In steps of three both ways, and around every fifth event.
        let numbers: Vec<u8> = room.top_level().map(|message| u8::try_from(message.seq).unwrap_or(u8::MAX)).collect();
        views.extend(numbers.iter().step_by(3).map(|seq| View::After(channel, *seq, 3)));
        views.extend(numbers.iter().rev().step_by(3).map(|seq| View::Before(channel, *seq, 3)));
        views.extend((0..=head).step_by(5).map(|seq| View::Around(channel, seq, 4)));
        for nth in 0..messages {
            let message = &room.messages[usize::from(nth)];
            if message.edited || message.deleted {
                views.push(View::Edits(channel, nth));
            }
            if message.thread.is_some() {
                views.push(View::One(channel, nth));
            } else if room.replies(message.seq).next().is_some() {
                views.push(View::Replies(channel, nth, 2));
                views.push(View::Replies(channel, nth, 200));
            }
        }
        for view in views {
            self.looks(reader, &view).await?;
        }
        Ok(())
    }

    async fn own_log_agrees(&mut self, who: u8) -> Outcome {
        let me: StreamId = self.model.person(who).id.into();
        let mut streams = vec![me];
        if PEOPLE[usize::from(who)].1 != Role::Guest {
            streams.push(StreamId::WORKSPACE);
        }
        for stream in streams {
            let base = self.model.streams[&stream].base;
            let path = format!("/v1/streams/{stream}/events?limit=1000&after_seq={base}");
            let seen = answer_of(&self.people[usize::from(who)].http.get(&path).await).map(|seen| plain(&seen));
            let expected = self.model.log(stream, base);
            if seen != expected {
                return Err(format!("{path}\n  shows   {}\n  and not {}", text(&seen), text(&expected)));
            }
        }
        Ok(())
    }
}

fn same_event(id: StreamId, stream: &Stream, seq: i64, event: &Value) -> Outcome {
    let Some(entry) = stream.entry(seq) else { return Err(format!("it hears {event}, which nobody did")) };
    let plain = plain(event);
    // A deleted text may have been heard before it was deleted.
    let ways = [shown_event(id, seq, entry, false), shown_event(id, seq, entry, true)];
    if ways.contains(&plain) { Ok(()) } else { Err(format!("it hears {plain}, not {}", ways[0])) }
}

/// Returns what the model answers. A channel that is made gets the identifier that the node gave it.
fn expect(model: &mut Model, who: u8, command: &Command, answer: &Answer) -> Answer {
    let made = answer.as_ref().ok().filter(|_| command.name() == "channel.create");
    let made: Option<ChannelId> = made.and_then(|answer| answer["id"].as_str()?.parse().ok());
    let who = model.person(who).id;
    model.apply(who, command, made.unwrap_or(StreamId::WORKSPACE.into()))
}

fn agree(expected: &Answer, answer: &Answer) -> bool {
    match (expected, answer) {
        (Ok(expected), Ok(answer)) => fits(expected, answer),
        (Err(expected), Err(code)) => expected == code,
        _ => false,
    }
}

fn body(command: &Command) -> Value {
    serde_json::from_str(&command.body()).unwrap()
}

fn has_key(command: &Command) -> bool {
    matches!(command, Command::SendMessage(send) if send.client_msg_id.is_some())
}

fn answer_of(answer: &Http) -> Answer {
    if answer.status < 300 { Ok(answer.json()) } else { Err(answer.code()) }
}

/// Whether an answer has all that is expected, and nothing if nothing is.
fn fits(expected: &Value, answer: &Value) -> bool {
    let answer = plain(answer);
    let fields = expected.as_object().unwrap();
    !(fields.is_empty() && answer != json!({})) && fields.iter().all(|(name, value)| answer[name] == *value)
}

/// Threads come by their newest reply, across channels, and pins by their time: neither is an order to compare.
fn sorted(view: &View, seen: Value) -> Value {
    if matches!(view, View::Threads | View::Pins(_)) { unordered(&seen) } else { seen }
}

fn text(answer: &Answer) -> String {
    match answer {
        Ok(value) => value.to_string(),
        Err(code) => code.clone(),
    }
}
