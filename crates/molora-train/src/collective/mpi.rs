//! Ranks of MPI: what `mpirun` or `srun` has started exchanges data by the library that it belongs to.
//!
//! One thread of each rank makes all calls of MPI. While the others compute it tells every rank, again and again, that
//! this one is there, and listens to them: a rank that was stopped, whose machine is gone or hangs, or whose network is
//! cut is silent, and a rank that hears nothing of another one ends the run. A rank that computes for hours is not silent.

use std::fmt;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::point_to_point::Message;
use ::mpi::request::scope;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, Destination, Equivalence, Source};

use super::{Collective, CollectiveError, group_of};

/// The most bytes of a message, whose counts are 32 bits wide.
const MOST: usize = i32::MAX as usize;
/// Messages with data.
const DATA: i32 = 1;
/// Messages that say that a rank is there, or that it has ended.
const SIGN: i32 = 2;
/// A sign of life.
const ALIVE: u8 = 1;
/// The last sign of a rank that ends.
const ENDED: u8 = 2;
/// A rank says so often that it is there.
const SIGN_EVERY: Duration = Duration::from_secs(2);
/// A rank that was silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(20);
/// A launcher passes on within so long what a rank has written.
const SAID: Duration = Duration::from_millis(300);
/// Who waits for data looks again and again for so long, and less often then.
const EAGER: Duration = Duration::from_millis(2);
/// The pause between two looks after that.
const PAUSE: Duration = Duration::from_micros(50);
/// Who has waited for longer than this waits for another run, or for the end.
const LONG: Duration = Duration::from_secs(1);
/// The pause then.
const LONG_PAUSE: Duration = Duration::from_millis(1);

/// What the thread of MPI is asked to do.
enum Call {
    /// Sends a part to each of some ranks, and returns what they sent.
    Exchange {
        members: Range<usize>,
        parts: Vec<Vec<u8>>,
        answer: Sender<Vec<Vec<u8>>>,
    },
    /// Ends all ranks.
    Abort,
}

/// A rank of MPI.
///
/// There is one in a process, and it begins and ends MPI. A rank that gives no sign of life for 20 s ends the program on all
/// ranks, as does one that has ended while another one waits for its data. Dropping it waits for all other ranks to drop
/// theirs.
pub struct Mpi {
    rank: usize,
    world_size: usize,
    calls: Option<Sender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank, self.world_size)
    }
}

impl Mpi {
    /// Begins MPI. `on_lost` is told why, before all ranks are ended since one is lost.
    ///
    /// # Errors
    /// [`CollectiveError::Transport`] if MPI cannot begin, or has before.
    pub fn start(
        on_lost: impl Fn(&CollectiveError) + Send + 'static,
    ) -> Result<Self, CollectiveError> {
        let transport = |problem: &str| CollectiveError::Transport(problem.into());
        let (calls, receiver) = channel();
        let (begun, begins) = channel();
        let thread = std::thread::Builder::new().name("mpi".into());
        let thread = thread.spawn(move || {
            // The thread that begins MPI is the one that calls it, and ends it.
            let started = ::mpi::initialize_with_threading(Threading::Funneled);
            let world = started.as_ref().map(|(universe, _)| universe.world());
            let place = |world: &SimpleCommunicator| (world.rank() as usize, world.size() as usize);
            let threading = started.as_ref().map(|&(_, threading)| threading);
            let is_heard = begun.send(world.as_ref().map(place).zip(threading)).is_ok();
            if let (Some(world), true) = (world, is_heard) {
                Wire::new(world, Box::new(on_lost)).serve(&receiver);
            }
        });
        let thread = thread.map_err(|error| transport(&error.to_string()))?;
        let begun = begins.recv().map_err(|_| transport("MPI cannot begin"))?;
        let ((rank, world_size), threading) = begun.ok_or(transport("MPI has begun already"))?;
        if threading < Threading::Funneled {
            let problem = "this MPI is for programs of one thread, expected MPI_THREAD_FUNNELED";
            return Err(transport(problem));
        }
        Ok(Self {
            rank,
            world_size,
            calls: Some(calls),
            thread: Some(thread),
        })
    }

    /// Ends the program on all ranks.
    pub fn abort(&self) -> ! {
        self.call(Call::Abort);
        loop {
            std::thread::park();
        }
    }

    fn call(&self, call: Call) {
        let calls = self.calls.as_ref().expect("there until it is dropped");
        // A thread that is gone answers nothing, which its caller sees.
        drop(calls.send(call));
    }

    /// Exchanges parts among some ranks.
    fn among(
        &self,
        members: Range<usize>,
        parts: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), members.len(), "a part for each rank");
        if let Some(most) = parts.iter().map(Vec::len).find(|&size| size > MOST) {
            let problem =
                format!("a step would send {most} bytes to a rank, expected at most {MOST}");
            return Err(CollectiveError::Transport(problem));
        }
        let (answer, answers) = channel();
        self.call(Call::Exchange {
            members,
            parts,
            answer,
        });
        let gone = |_| CollectiveError::Transport("the thread of MPI has ended".into());
        answers.recv().map_err(gone)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        drop(self.calls.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.among(0..self.world_size, parts)
    }

    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError> {
        let (_, members) = group_of(self.rank, count, self.world_size);
        Ok(Box::new(Group { mpi: self, members }))
    }
}

/// Some of the ranks.
#[derive(Debug)]
struct Group<'a> {
    mpi: &'a Mpi,
    members: Range<usize>,
}

impl Collective for Group<'_> {
    fn rank(&self) -> usize {
        self.mpi.rank - self.members.start
    }

    fn world_size(&self) -> usize {
        self.members.len()
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.mpi.among(self.members.clone(), parts)
    }

    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError> {
        let (_, ranks) = group_of(self.rank(), count, self.world_size());
        let start = self.members.start;
        Ok(Box::new(Group {
            mpi: self.mpi,
            members: start + ranks.start..start + ranks.end,
        }))
    }
}

/// What is known of another rank.
#[derive(Clone, Copy)]
struct Peer {
    heard: Instant,
    has_ended: bool,
}

/// MPI, on its thread.
struct Wire {
    world: SimpleCommunicator,
    rank: usize,
    peers: Vec<Peer>,
    told: Option<Instant>,
    on_lost: Box<dyn Fn(&CollectiveError)>,
}

impl Wire {
    fn new(world: SimpleCommunicator, on_lost: Box<dyn Fn(&CollectiveError)>) -> Self {
        let peer = Peer {
            heard: Instant::now(),
            has_ended: false,
        };
        Self {
            rank: world.rank() as usize,
            peers: vec![peer; world.size() as usize],
            world,
            told: None,
            on_lost,
        }
    }

    /// Does what it is asked to until nobody is left to ask.
    fn serve(mut self, calls: &Receiver<Call>) {
        loop {
            match calls.recv_timeout(SIGN_EVERY) {
                Ok(Call::Exchange {
                    members,
                    parts,
                    answer,
                }) => drop(answer.send(self.exchange(&members, &parts))),
                Ok(Call::Abort) => self.end_all(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
            self.listen();
        }
    }

    /// Sends a sign to others: that it is there to those that are, that it ends to all.
    fn tell(&mut self, sign: u8) {
        for peer in self
            .others()
            .filter(|&peer| sign == ENDED || !self.peers[peer].has_ended)
        {
            let process = self.world.process_at_rank(peer as i32);
            process.send_with_tag(&sign, SIGN);
        }
        self.told = Some(Instant::now());
    }

    /// All ranks but this one.
    fn others(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let own = self.rank;
        (0..self.peers.len()).filter(move |&peer| peer != own)
    }

    /// Reads the signs that have come.
    fn hear(&mut self) {
        while let Some((message, status)) = self
            .world
            .any_process()
            .immediate_matched_probe_with_tag(SIGN)
        {
            let (sign, _) = message.matched_receive::<u8>();
            let peer = &mut self.peers[status.source_rank() as usize];
            peer.heard = Instant::now();
            peer.has_ended |= sign == ENDED;
        }
    }

    /// Says that this rank is there, if it is time, hears the others, and ends the run if one is silent.
    fn listen(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < SIGN_EVERY) {
            return;
        }
        // Who was stopped itself has heard nothing, of nobody.
        if self.told.is_some_and(|told| told.elapsed() > SILENCE / 2) {
            let now = Instant::now();
            self.peers.iter_mut().for_each(|peer| peer.heard = now);
        }
        self.tell(ALIVE);
        self.hear();
        self.watch();
    }

    /// Says that this rank ends, and waits for all others to do so: nothing is on its way when MPI ends.
    fn end(&mut self) {
        self.tell(ENDED);
        while self.others().any(|peer| !self.peers[peer].has_ended) {
            std::thread::sleep(LONG_PAUSE);
            self.hear();
            self.watch();
        }
    }

    /// Ends the run if a rank is silent.
    fn watch(&self) {
        let silent = |peer: &Peer| !peer.has_ended && peer.heard.elapsed() > SILENCE;
        let Some(lost) = self.others().find(|&peer| silent(&self.peers[peer])) else {
            return;
        };
        // One of those that hear each other speaks first.
        let mut heard = self.others().filter(|&peer| !silent(&self.peers[peer]));
        let speaks = heard.all(|peer| peer > self.rank);
        if !speaks && self.peers[lost].heard.elapsed() < SILENCE + 2 * SIGN_EVERY {
            return;
        }
        self.lose(CollectiveError::Silent {
            rank: lost,
            world_size: self.peers.len(),
            seconds: self.peers[lost].heard.elapsed().as_secs(),
        })
    }

    /// Ends all ranks, since one is lost.
    fn lose(&self, error: CollectiveError) -> ! {
        (self.on_lost)(&error);
        self.end_all()
    }

    /// Ends all ranks, when the launcher has had time to pass on what was said.
    fn end_all(&self) -> ! {
        std::thread::sleep(SAID);
        self.world.abort(1)
    }

    /// Sends a part to each of some ranks; what they sent, by rank.
    fn exchange(&mut self, members: &Range<usize>, parts: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let own = self.rank - members.start;
        let others: Vec<usize> = members.clone().filter(|&peer| peer != self.rank).collect();
        scope(|sending| {
            let send = |&peer: &usize| {
                let process = self.world.process_at_rank(peer as i32);
                let part = &parts[peer - members.start][..];
                process.immediate_send_with_tag(sending, part, DATA)
            };
            let mut sends: Vec<_> = others.iter().map(send).collect();
            let messages = self.matched(&others);
            // With room for one more: no vector without an address of its own.
            let mut found: Vec<Vec<u8>> = messages
                .iter()
                .map(|(_, size)| {
                    let mut found = Vec::with_capacity(size + 1);
                    found.resize(*size, 0);
                    found
                })
                .collect();
            scope(|receiving| {
                let receive = |((message, _), found): ((Message, usize), _)| {
                    let found: &mut Vec<u8> = found;
                    message.immediate_matched_receive_into(receiving, &mut found[..])
                };
                let mut receives: Vec<_> =
                    messages.into_iter().zip(&mut found).map(receive).collect();
                let wait = Wait::new();
                while !(sends.is_empty() && receives.is_empty()) {
                    sends = sends
                        .into_iter()
                        .filter_map(|one| one.test().err())
                        .collect();
                    receives = receives
                        .into_iter()
                        .filter_map(|one| one.test().err())
                        .collect();
                    wait.a_while();
                    self.listen();
                }
            });
            found.insert(own, parts[own].clone());
            found
        })
    }

    /// A message of each of these ranks, and its size.
    fn matched(&mut self, others: &[usize]) -> Vec<(Message, usize)> {
        let mut found: Vec<_> = others.iter().map(|_| None).collect();
        let wait = Wait::new();
        while found.iter().any(Option::is_none) {
            for (&peer, found) in others.iter().zip(&mut found) {
                if found.is_some() {
                    continue;
                }
                // Asked before the message is looked for: what came before its end is there by then.
                let has_ended = self.peers[peer].has_ended;
                let process = self.world.process_at_rank(peer as i32);
                let message = process.immediate_matched_probe_with_tag(DATA);
                if message.is_none() && has_ended {
                    // What was begun with the others can never be ended.
                    let (rank, world_size) = (peer, self.peers.len());
                    self.lose(CollectiveError::Gone { rank, world_size });
                }
                *found = message.map(|(message, status)| {
                    let size = status.count(u8::equivalent_datatype());
                    (message, size as usize)
                });
            }
            wait.a_while();
            self.listen();
        }
        found.into_iter().flatten().collect()
    }
}

/// Waiting that is quick at first, and then leaves the processor to others.
struct Wait {
    since: Instant,
}

impl Wait {
    fn new() -> Self {
        Self {
            since: Instant::now(),
        }
    }

    fn a_while(&self) {
        match self.since.elapsed() {
            waited if waited < EAGER => std::thread::yield_now(),
            waited if waited < LONG => std::thread::sleep(PAUSE),
            _ => std::thread::sleep(LONG_PAUSE),
        }
    }
}
