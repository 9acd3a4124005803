use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::domain::user::PresenceMode;

const NODES: usize = 3;
const USERS: usize = 6;
const LINGER: Duration = Duration::from_secs(30);

fn id(n: usize) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n as u128 + 1))
}

fn user(n: usize) -> UserId {
    UserId(uuid::Uuid::from_u128(n as u128 + 1))
}

fn changes(version: u64, users: &[(usize, Presence)]) -> Changes {
    Changes { version, users: users.iter().map(|(n, presence)| (user(*n), *presence)).collect() }
}

#[derive(Clone, Debug)]
enum Said {
    Beat(u64),
    Changes(Changes),
    All(All),
    Ask,
}

type Shown = BTreeMap<UserId, Presence>;

struct Hub {
    here: Table,
    voice: Voice,
    peers: Peers,
    told: Shown,
    /// What was told, by version.
    history: HashMap<u64, Shown>,
}

/// Nodes, and what is on its way between them.
struct World {
    nodes: Vec<Hub>,
    ways: Vec<(usize, usize, Said)>,
    now: Instant,
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Comes(usize, usize),
    Goes(usize, usize),
    Shows(usize, usize, PresenceMode),
    Tells(usize),
    Beats(usize),
    Asks(usize),
    /// The tracker dies, and is rebuilt.
    Restarts(usize),
    Looks(usize, usize, Lease),
    Arrives(usize),
    Repeats(usize),
    Loses(usize),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (node, who, any) = (0..NODES, 0..USERS, 0..1_000usize);
    let mode = prop::sample::select(PresenceMode::ALL);
    let lease = prop::sample::select(&[Lease::Holds, Lease::Doubtful, Lease::Over][..]);
    prop_oneof![
        3 => (node.clone(), who.clone()).prop_map(|(n, u)| Step::Comes(n, u)),
        2 => (node.clone(), who.clone()).prop_map(|(n, u)| Step::Goes(n, u)),
        1 => (node.clone(), who, mode).prop_map(|(n, u, mode)| Step::Shows(n, u, mode)),
        4 => node.clone().prop_map(Step::Tells),
        2 => node.clone().prop_map(Step::Beats),
        3 => node.clone().prop_map(Step::Asks),
        1 => node.clone().prop_map(Step::Restarts),
        1 => (node.clone(), node, lease).prop_map(|(n, of, lease)| Step::Looks(n, of, lease)),
        12 => any.clone().prop_map(Step::Arrives),
        2 => any.clone().prop_map(Step::Repeats),
        2 => any.prop_map(Step::Loses),
        2 => (0..40_000u64).prop_map(Step::Passes),
    ]
}

impl World {
    fn new() -> World {
        let hub = |_| Hub {
            here: Table::default(),
            voice: Voice { piece: 2, ..Voice::new(0) },
            peers: Peers::default(),
            told: Shown::new(),
            history: HashMap::new(),
        };
        World { nodes: (0..NODES).map(hub).collect(), ways: Vec::new(), now: Instant::now() }
    }

    fn say(&mut self, from: usize, said: &Said) {
        for to in (0..NODES).filter(|to| *to != from) {
            self.ways.push((from, to, said.clone()));
        }
    }

    fn tell(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let told = node.voice.changes(&node.here);
        for changes in &told {
            for (user, presence) in &changes.users {
                match presence {
                    Presence::Offline => node.told.remove(user),
                    presence => node.told.insert(*user, *presence),
                };
            }
            node.history.insert(changes.version, node.told.clone());
        }
        assert_eq!(node.told, node.here.all().collect::<Shown>(), "all is told");
        let before = node.history.insert(node.voice.version(), node.told.clone());
        assert!(before.is_none_or(|before| before == node.told), "one version is one state");
        for changes in told {
            self.say(at, &Said::Changes(changes));
        }
    }

    fn ask(&mut self, at: usize) {
        for due in self.nodes[at].peers.due(self.now) {
            let to = (0..NODES).find(|n| id(*n) == due).unwrap();
            self.ways.push((at, to, Said::Ask));
        }
    }

    fn arrive(&mut self, from: usize, to: usize, said: Said) {
        let (peers, now) = (&mut self.nodes[to].peers, self.now);
        match said {
            Said::Beat(version) => peers.beat(id(from), version, now),
            Said::Changes(changes) => drop(peers.changes(id(from), changes, now)),
            Said::All(all) => drop(peers.all(id(from), all, now)),
            Said::Ask => {
                self.tell(to);
                for part in self.nodes[to].voice.all(&self.nodes[to].here) {
                    self.ways.push((to, from, Said::All(part)));
                }
            }
        }
        self.check();
    }

    /// What is known of a node is what it told at one time.
    fn check(&self) {
        for node in &self.nodes {
            for (of, known) in &node.peers.nodes {
                let of = (0..NODES).find(|n| id(*n) == *of).unwrap();
                let users: Shown = known.users.iter().map(|(user, presence)| (*user, *presence)).collect();
                match known.version {
                    0 => assert!(users.is_empty()),
                    version => assert_eq!(users, self.nodes[of].history[&version]),
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        let way = |any: usize, ways: &[_]| (!ways.is_empty()).then(|| any % ways.len());
        match step {
            Step::Comes(at, who) | Step::Goes(at, who) => {
                let node = &mut self.nodes[at];
                let mode = matches!(step, Step::Comes(..)).then_some(PresenceMode::Auto);
                if node.here.set(user(who), mode, Timestamp(1)).is_some() {
                    node.voice.note(user(who));
                }
            }
            Step::Shows(at, who, mode) => {
                let node = &mut self.nodes[at];
                if node.here.has(user(who)) && node.here.set(user(who), Some(mode), Timestamp(1)).is_some() {
                    node.voice.note(user(who));
                }
            }
            Step::Tells(at) => self.tell(at),
            Step::Beats(at) => self.say(at, &Said::Beat(self.nodes[at].voice.version())),
            Step::Asks(at) => self.ask(at),
            Step::Restarts(at) => {
                let node = &mut self.nodes[at];
                node.voice = Voice { piece: 2, ..Voice::new(node.voice.version()) };
                node.peers = Peers::default();
                node.told = Shown::new();
                let here: Vec<_> = node.here.all().collect();
                here.into_iter().for_each(|(user, _)| node.voice.note(user));
            }
            Step::Looks(at, of, lease) => {
                let lease = |node| if node == id(of) { lease } else { Lease::Holds };
                self.nodes[at].peers.look(lease, LINGER, self.now);
            }
            Step::Arrives(any) => {
                if let Some(at) = way(any, &self.ways) {
                    let (from, to, said) = self.ways.swap_remove(at);
                    self.arrive(from, to, said);
                }
            }
            Step::Repeats(any) => {
                if let Some(at) = way(any, &self.ways) {
                    let (from, to, said) = self.ways[at].clone();
                    self.arrive(from, to, said);
                }
            }
            Step::Loses(any) => {
                if let Some(at) = way(any, &self.ways) {
                    self.ways.swap_remove(at);
                }
            }
            Step::Passes(ms) => self.now += Duration::from_millis(ms),
        }
    }

    /// Everything arrives, in order, from now on.
    fn heals(&mut self) {
        for _ in 0..4 {
            self.now += ASK_EVERY;
            for at in 0..NODES {
                self.tell(at);
                self.step(Step::Beats(at));
                self.ask(at);
            }
            while !self.ways.is_empty() {
                for (from, to, said) in std::mem::take(&mut self.ways) {
                    self.arrive(from, to, said);
                }
                for at in 0..NODES {
                    self.nodes[at].peers.look(|_| Lease::Holds, LINGER, self.now);
                    self.ask(at);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_repeated_or_reordered_in_the_end_all_see_the_same(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.heals();
        for at in 0..NODES {
            for who in 0..USERS {
                let others = (0..NODES).filter(|other| *other != at);
                let shown = others.map(|other| world.nodes[other].here.shown(user(who))).max().unwrap();
                prop_assert_eq!(world.nodes[at].peers.seen(user(who)), (shown, Presence::Offline));
            }
        }
    }
}

#[test]
fn who_misses_something_asks_at_once_and_not_too_often() {
    let (mut peers, now) = (Peers::default(), Instant::now());
    let after = |ms| now + Duration::from_millis(ms);
    peers.beat(id(0), 0, now);
    assert!(peers.due(now).is_empty(), "it does not tell anything");
    peers.beat(id(0), 3, now);
    assert_eq!(peers.due(now), [id(0)], "it is seen for the first time");
    assert!(peers.due(after(999)).is_empty());
    assert_eq!(peers.due(after(1_000)), [id(0)], "the answer did not come");
    let all = All { version: 3, part: 0, parts: 1, users: vec![(user(0), Presence::Online)] };
    assert_eq!(peers.all(id(0), all, after(1_100)), [user(0)]);
    assert!(peers.due(after(9_000)).is_empty());

    peers.beat(id(0), 4, after(10_000));
    assert!(peers.due(after(10_999)).is_empty(), "it may be on its way");
    assert_eq!(peers.changes(id(0), changes(4, &[(0, Presence::Away)]), after(10_999)), [user(0)]);
    assert!(peers.due(after(11_000)).is_empty());
    peers.beat(id(0), 5, after(12_000));
    assert_eq!(peers.due(after(13_000)), [id(0)]);
    assert!(peers.changes(id(0), changes(7, &[]), after(13_500)).is_empty());
    assert_eq!(peers.due(after(14_000)), [id(0)], "one of them is lost");
    assert!(peers.changes(id(0), changes(4, &[(0, Presence::Dnd)]), after(14_000)).is_empty(), "an old one");
    assert_eq!(peers.seen(user(0)).0, Presence::Away);
}

#[test]
fn a_node_that_is_not_heard_makes_its_users_unknown_until_it_is_known_how_they_are() {
    let (mut peers, now) = (Peers::default(), Instant::now());
    let all = |version, presence| All { version, part: 0, parts: 1, users: vec![(user(0), presence)] };
    peers.beat(id(0), 1, now);
    peers.all(id(0), all(1, Presence::Online), now);
    let (doubt, trust) = (|_| Lease::Doubtful, |_| Lease::Holds);
    assert_eq!(peers.look(doubt, LINGER, now), [user(0)]);
    assert!(peers.look(doubt, LINGER, now).is_empty());
    let unknown = (Presence::Offline, Presence::Unknown);
    assert_eq!(peers.seen(user(0)), unknown);
    assert!(peers.look(trust, LINGER, now).is_empty(), "it has not said yet how far it is");
    peers.beat(id(0), 2, now);
    assert!(peers.look(trust, LINGER, now).is_empty());
    assert_eq!((peers.seen(user(0)), peers.due(now)), (unknown, vec![id(0)]));
    peers.all(id(0), all(2, Presence::Away), now);
    assert_eq!(peers.look(trust, LINGER, now), [user(0)]);
    assert_eq!(peers.seen(user(0)).0, Presence::Away);

    peers.look(doubt, LINGER, now);
    peers.beat(id(0), 2, now);
    assert_eq!(peers.look(trust, LINGER, now), [user(0)], "nothing happened meanwhile");
    assert!(peers.due(now + LINGER).is_empty());
}

#[test]
fn what_a_dead_node_said_lingers() {
    let (mut peers, now) = (Peers::default(), Instant::now());
    peers.beat(id(0), 1, now);
    peers.all(id(0), All { version: 1, part: 0, parts: 1, users: vec![(user(0), Presence::Dnd)] }, now);
    let over = |_| Lease::Over;
    peers.look(over, LINGER, now);
    assert_eq!(peers.seen(user(0)), (Presence::Offline, Presence::Dnd));
    assert_eq!(peers.look(over, LINGER, now + LINGER), [user(0)]);
    assert_eq!(peers.seen(user(0)), (Presence::Offline, Presence::Offline));
    assert_eq!(peers.count(), (0, 0));
    assert!(peers.changes(id(0), changes(2, &[(0, Presence::Online)]), now).is_empty());
    assert_eq!(peers.due(now), [id(0)], "it lives after all");
}
