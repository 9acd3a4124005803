//! A node: what is real of it, and the writer around that.

use super::database::Head;
use super::*;
use crate::actors::cluster::line::{Line, Turn};

#[derive(Clone)]
pub(super) enum From {
    Client(usize, u64),
    Node(NodeId, u64),
}

#[derive(Clone)]
pub(super) struct Command {
    pub(super) stream: usize,
    pub(super) key: String,
    pub(super) claim: Claim,
    pub(super) from: From,
    pub(super) tries: u8,
    /// That it is carried out here, for who asked this node.
    pub(super) _turn: Option<Arc<Turn>>,
}

#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) head: i64,
    pub(super) epoch: i64,
    pub(super) mine: bool,
}

pub(super) struct Node {
    pub(super) run: u64,
    pub(super) id: NodeId,
    pub(super) alive: bool,
    pub(super) stopped_until: u64,
    /// Neither sends nor hears anything by the bus.
    pub(super) cut: bool,
    pub(super) cut_since: u64,
    /// What it believes of its bus, which it finds out late.
    pub(super) bus: bool,
    pub(super) core: Core<Command>,
    pub(super) seal: Seal,
    pub(super) had_others: bool,
    pub(super) queue: Vec<Command>,
    pub(super) writing: bool,
    pub(super) memory: HashMap<usize, Memory>,
    pub(super) rooms: Vec<Room>,
    pub(super) reading: BTreeSet<usize>,
    pub(super) first: Vec<i64>,
    pub(super) ticked: u64,
    pub(super) beat: u64,
    pub(super) store_beat: u64,
    pub(super) swept: u64,
}

impl World {
    /// Who asked for what, if that was by this node.
    fn line(&self, command: &Command) -> Option<Line> {
        match command.from {
            From::Client(client, _) => Some((self.user(client), self.database.streams[command.stream].id)),
            From::Node(..) => None,
        }
    }

    pub(super) fn ask(&mut self, n: usize, command: Command) {
        let (now, line) = (self.instant(), self.line(&command).expect("a client asks"));
        let node = &mut self.nodes[n];
        let sent_ms = node.core.age_ms(now);
        let (to, number, sealed) = match node.core.route(line, command, now) {
            Routed::Here(before, claim, command) => {
                self.take_back(n, before);
                return self.enter(n, Command { claim, ..command });
            }
            Routed::There(to, number, command) => {
                let caller = Principal {
                    user_id: UserId(uuid::Uuid::nil()),
                    role: Role::Member,
                    token_id: TokenId(uuid::Uuid::nil()),
                };
                let body = command.stream.to_string();
                let run = Run::new(number, 2_000, caller, "message.send", body, command.key.clone());
                (to, number, node.seal.seal(To::Node(to), &Message::Run(run.sent(sent_ms))))
            }
        };
        if !self.say(n, To::Node(to), &sealed)
            && let Some(command) = self.nodes[n].core.answered(number, to)
        {
            let before = self.nodes[n].core.asked_before(line, number);
            self.take_back(n, before);
            self.enter(n, Command { claim: Claim::Beside, ..command });
        }
    }

    fn enter(&mut self, n: usize, command: Command) {
        let turn = self.line(&command).map(|line| Arc::new(self.nodes[n].core.enters(line)));
        self.nodes[n].queue.push(Command { _turn: turn, ..command });
    }

    fn take_back(&mut self, n: usize, back: Vec<Command>) {
        self.taken_back += back.len();
        for command in back {
            self.enter(n, Command { claim: Claim::Beside, ..command });
        }
    }

    pub(super) fn answer(&mut self, n: usize, command: &Command, result: Result<i64, Code>) {
        match command.from {
            From::Client(client, attempt) => {
                let asked = self.clients[client].asked.clone();
                // Who is dead, or answers late, is not heard.
                let Some(op) = asked.filter(|op| op.attempt == attempt && op.node == n) else { return };
                match result {
                    Ok(seq) => {
                        self.clients[client].acked.push((op.key, op.stream, seq));
                        self.clients[client].asked = None;
                    }
                    Err(_) => self.clients[client].asked = Some(Op { since: 0, ..op }),
                }
            }
            From::Node(to, number) => {
                let result = match result {
                    Ok(seq) => Ok(Reply { json: seq.to_string(), duplicate: false }),
                    Err(code) => Err(Refusal::new(code, "no")),
                };
                let sealed = self.nodes[n].seal.seal(To::Node(to), &Message::Ran(Ran::new(number, result)));
                self.say(n, To::Node(to), &sealed);
            }
        }
    }

    fn write(&mut self, n: usize) {
        if self.nodes[n].writing || self.nodes[n].queue.is_empty() {
            return;
        }
        let most = self.nodes[n].queue.len().min(BATCH);
        let batch: Vec<Command> = self.nodes[n].queue.drain(..most).collect();
        self.nodes[n].writing = true;
        self.decide(n, batch, false);
    }

    fn decide(&mut self, n: usize, batch: Vec<Command>, asked: bool) {
        let node = &self.nodes[n];
        let known = |command: &Command| {
            let memory = node.memory.get(&command.stream)?;
            (asked || memory.mine || command.claim == Claim::Beside).then_some(*memory)
        };
        if !batch.iter().all(|command| known(command).is_some()) {
            let after = 1 + self.random.below(4);
            return self.at(after, n, Act::Asked { batch });
        }
        let mut heads: Vec<Head> = Vec::new();
        for command in &batch {
            let memory = known(command).expect("all of them are known");
            let stream = &self.database.streams[command.stream];
            // As the question says: taken over by another one, and not just now.
            let free = !memory.mine && (stream.owner.is_none() || self.now >= stream.owned_at + TAKEN);
            let take = asked && free && command.claim == Claim::Owner;
            match heads.iter_mut().find(|head| head.stream == command.stream) {
                Some(head) => {
                    head.keys.push(command.key.clone());
                    head.take |= take;
                }
                None => heads.push(Head {
                    stream: command.stream,
                    was: memory.head,
                    epoch: memory.epoch,
                    take,
                    mine: memory.mine,
                    keys: vec![command.key.clone()],
                }),
            }
        }
        let breaks = self.faulty && !self.orderly && self.random.says(20);
        let after = 1 + self.random.below(4);
        if breaks {
            // It takes effect now, much later, or never.
            let later = self.random.below(2_500);
            if self.random.says(700) {
                let insert = Act::Insert { batch: batch.clone(), heads, answer: None };
                self.at(later, n, insert);
            }
            return self.at(after, n, Act::Broken { batch });
        }
        let answer = Some(1 + self.random.below(4));
        self.at(after, n, Act::Insert { batch, heads, answer });
    }

    /// The question is answered, as of now.
    pub(super) fn asked(&mut self, n: usize, batch: Vec<Command>) {
        let mut going: Vec<Command> = Vec::new();
        for command in batch {
            let found = self.database.keys.get(&command.key).copied();
            let again = going.iter().any(|other| other.key == command.key);
            match found {
                Some((_, seq)) => self.answer(n, &command, Ok(seq)),
                // A repeat within the batch: it comes again behind the first.
                None if again => self.nodes[n].queue.push(command),
                None => {
                    let stream = &self.database.streams[command.stream];
                    let mine = stream.owner == Some(self.nodes[n].id);
                    let memory = Memory { head: stream.head(), epoch: stream.epoch, mine };
                    self.nodes[n].memory.insert(command.stream, memory);
                    going.push(command);
                }
            }
        }
        if going.is_empty() {
            self.nodes[n].writing = false;
        } else {
            self.decide(n, going, true);
        }
    }

    pub(super) fn inserted(
        &mut self,
        n: usize,
        batch: Vec<Command>,
        heads: &[Head],
        result: Result<BTreeSet<usize>, ()>,
    ) {
        let Ok(stored) = result else {
            self.nodes[n].memory.clear();
            return self.at(1, n, Act::Asked { batch });
        };
        let mut told = Vec::new();
        for head in heads {
            let node = &mut self.nodes[n];
            if !stored.contains(&head.stream) {
                node.memory.remove(&head.stream);
                continue;
            }
            let last = head.was + head.keys.len() as i64;
            let (epoch, mine) = (head.epoch + i64::from(head.take), head.mine || head.take);
            node.memory.insert(head.stream, Memory { head: last, epoch, mine });
            let log = &self.database.streams[head.stream].log;
            told.extend(log[head.was as usize..last as usize].iter().cloned());
        }
        if !told.is_empty() {
            for event in &told {
                self.hear(n, event);
            }
            let sealed = self.nodes[n].seal.seal_events(&told);
            self.say(n, To::Everyone, &sealed);
        }
        let mut again = Vec::new();
        for mut command in batch {
            if stored.contains(&command.stream) {
                let seq = self.database.keys[&command.key].1;
                self.answer(n, &command, Ok(seq));
            } else if command.tries == 2 {
                self.answer(n, &command, Err(Code::Unavailable));
            } else {
                command.tries += 1;
                again.push(command);
            }
        }
        if again.is_empty() {
            self.nodes[n].writing = false;
        } else {
            self.at(1, n, Act::Asked { batch: again });
        }
    }

    pub(super) fn hear(&mut self, n: usize, event: &Event) {
        let stream = self.database.streams.iter().position(|s| s.id == event.stream).expect("it is one of them");
        let stored = self.database.streams[stream].log.get(event.seq as usize - 1);
        assert!(stored.is_some_and(|stored| stored.id == event.id), "something was heard that is not stored");
        let node = &mut self.nodes[n];
        let before = node.rooms[stream].delivered();
        match node.rooms[stream].hear(event, None) {
            Heard::Next => assert_eq!(event.seq, before + 1),
            Heard::Before => {}
            Heard::Gap => self.read(n, stream),
        }
    }

    pub(super) fn read(&mut self, n: usize, stream: usize) {
        if self.nodes[n].reading.insert(stream) {
            let after = 1 + self.random.below(20);
            self.at(after, n, Act::Read { stream });
        }
    }

    pub(super) fn take(&mut self, n: usize, bytes: &[u8]) {
        let now = self.instant();
        let Opened { from, number, message } = self.nodes[n].seal.open(bytes).expect("it was sealed");
        if !self.nodes[n].core.is_new(from, number.expect("it is numbered")) {
            return;
        }
        match message {
            Message::Beat(beat) => {
                let core = &mut self.nodes[n].core;
                core.beats(from, beat.sent_ms, now);
                core.members.heard(from, &beat.name, beat.leaves, now);
                core.members.set_cut_off(from, beat.cut_off);
            }
            Message::Events(events) => events.iter().for_each(|event| self.hear(n, event)),
            Message::Run(run) => {
                if self.nodes[n].core.comes(from, &run, now).is_none() {
                    let ran = Message::Ran(Ran::new(run.number, Err(cannot())));
                    let sealed = self.nodes[n].seal.seal(To::Node(from), &ran);
                    self.say(n, To::Node(from), &sealed);
                    return;
                }
                let stream: usize = run.body.get().parse().expect("a stream");
                let owned = self.nodes[n].core.members.owner(self.database.streams[stream].id, now);
                let claim = if owned == Some(self.nodes[n].id) { Claim::Owner } else { Claim::Beside };
                let from = From::Node(from, run.number);
                self.nodes[n].queue.push(Command { stream, key: run.key, claim, from, tries: 0, _turn: None });
            }
            Message::Ran(ran) => {
                let number = ran.number;
                let Some(command) = self.nodes[n].core.answered(number, from) else { return };
                match ran.result().expect("it is known") {
                    Ok(reply) => self.answer(n, &command, Ok(reply.json.parse().expect("a number"))),
                    Err(refusal) if refusal.code == Code::Timeout => {
                        let line = self.line(&command).expect("a client asked");
                        let mut back = self.nodes[n].core.asked_before(line, number);
                        back.push(command);
                        self.take_back(n, back);
                    }
                    Err(refusal) => self.answer(n, &command, Err(refusal.code)),
                }
            }
            _ => unreachable!("nobody says that here"),
        }
    }

    pub(super) fn turn(&mut self, n: usize) {
        let (now, instant) = (self.now, self.instant());
        if now >= self.nodes[n].beat + BEAT.as_millis() as u64 {
            self.nodes[n].beat = now;
            // Whatever a node believes of its way to the database, right or not.
            let cut_off = self.faulty && self.random.says(100);
            let (name, id) = (format!("hub-{n}"), self.nodes[n].id);
            self.nodes[n].core.members.set_cut_off(id, cut_off);
            let sent_ms = Some(self.nodes[n].core.age_ms(instant));
            let beat = Message::Beat(Beat { name, leaves: false, cut_off, presence: 0, sent_ms });
            let sealed = self.nodes[n].seal.seal(To::Everyone, &beat);
            if self.say(n, To::Everyone, &sealed) {
                self.nodes[n].core.members.showed(instant);
            }
        }
        if now >= self.nodes[n].ticked + TICK.as_millis() as u64 {
            let node = &mut self.nodes[n];
            node.ticked = now;
            let ticked = node.core.tick(node.bus, node.had_others, instant);
            node.had_others = node.core.members.has_others(instant);
            if ticked.changed {
                node.swept = 0;
            }
            self.take_back(n, ticked.back);
        }
        if now >= self.nodes[n].store_beat + STORE_BEAT.as_millis() as u64 {
            self.nodes[n].store_beat = now;
            let after = self.random.below(50);
            self.at(after, n, Act::Beats);
        }
        let every = if self.nodes[n].core.members.is_degraded(instant) { SWEEP_DEGRADED } else { SWEEP };
        if now >= self.nodes[n].swept + every {
            self.nodes[n].swept = now;
            let after = 1 + self.random.below(20);
            self.at(after, n, Act::Sweep);
        }
        self.write(n);
    }
}
