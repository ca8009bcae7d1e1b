//! Threads that compute: one for each model, or for all that write on one base.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use molora_train::generate::{Engine, EngineState, Listener, Request};

use crate::error::ApiError;

/// How many requests are inside, of so many that may be.
#[derive(Debug)]
pub(crate) struct Room {
    inside: AtomicUsize,
    most: usize,
}

/// Places of requests, which are free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Room>);

impl Room {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let inside = AtomicUsize::new(0);
        Arc::new(Self { inside, most })
    }

    /// Refuses what there would be no room for if nobody else was there.
    pub(crate) fn check(&self, count: usize) -> Result<(), ApiError> {
        match count > self.most {
            false => Ok(()),
            true => Err(ApiError::bad(format!(
                "the request asks for {count} texts, expected at most {}",
                self.most
            ))),
        }
    }

    /// So many places at once, or none.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Result<Vec<Place>, ApiError> {
        self.check(count)?;
        let fits = |inside: usize| (inside + count <= self.most).then_some(inside + count);
        match self
            .inside
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
        {
            Ok(_) => Ok((0..count).map(|_| Place(Arc::clone(self))).collect()),
            Err(inside) => Err(ApiError::full(inside)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request to the model of a number.
type Job = (usize, Request, Box<dyn Listener>);

/// An engine on a thread of its own, which ends when nobody can ask it any more.
#[derive(Debug)]
pub(crate) struct TextWorker {
    jobs: mpsc::Sender<Job>,
    states: Arc<Mutex<Vec<EngineState>>>,
}

impl TextWorker {
    pub(crate) fn start(name: &str, engine: Engine) -> std::io::Result<Arc<Self>> {
        let (jobs, received) = mpsc::channel();
        let states = Arc::new(Mutex::new(engine.states().to_vec()));
        let shown = Arc::clone(&states);
        let thread = thread::Builder::new().name(format!("engine {name}"));
        thread.spawn(move || run(engine, &received, &shown))?;
        Ok(Arc::new(Self { jobs, states }))
    }

    /// Asks the model of a number for a text.
    pub(crate) fn ask(
        &self,
        model: usize,
        request: Request,
        listener: Box<dyn Listener>,
    ) -> Result<(), ApiError> {
        let sent = self.jobs.send((model, request, listener));
        sent.map_err(|_| ApiError::fault("the model's thread has ended"))
    }

    /// What the engine does for the model of a number.
    pub(crate) fn state(&self, model: usize) -> EngineState {
        let states = self.states.lock();
        states.unwrap_or_else(PoisonError::into_inner)[model].clone()
    }
}

fn run(mut engine: Engine, jobs: &mpsc::Receiver<Job>, shown: &Mutex<Vec<EngineState>>) {
    let mut is_busy = false;
    loop {
        if !is_busy {
            let Ok((model, request, listener)) = jobs.recv() else {
                return;
            };
            engine.submit(model, request, listener);
        }
        while let Ok((model, request, listener)) = jobs.try_recv() {
            engine.submit(model, request, listener);
        }
        // A fault in one pass ends its requests, and not the server.
        is_busy =
            catch_unwind(AssertUnwindSafe(|| in_pool(|| engine.step()))).unwrap_or_else(|_| {
                engine.fail_all("the model's computation failed; the server's log says how");
                false
            });
        let states = engine.states().to_vec();
        *shown.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }
}

/// Computes on a thread of the pool, so that a parallel operation needs no other thread to be woken for it.
fn in_pool<T: Send>(compute: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| compute())
}

/// A model that answers one request after the other, on a thread of its own.
#[derive(Debug)]
pub(crate) struct TurnWorker<Model> {
    jobs: mpsc::Sender<Turn<Model>>,
    room: Arc<Room>,
}

type Turn<Model> = Box<dyn FnOnce(&mut Model) + Send>;

impl<Model: Send + 'static> TurnWorker<Model> {
    pub(crate) fn start(name: &str, mut model: Model, room: usize) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel::<Turn<Model>>();
        let thread = thread::Builder::new().name(format!("model {name}"));
        thread.spawn(move || {
            for turn in received {
                // Whoever waits for this answer hears that there is none.
                drop(catch_unwind(AssertUnwindSafe(|| {
                    in_pool(|| turn(&mut model))
                })));
            }
        })?;
        Ok(Self {
            jobs,
            room: Room::new(room),
        })
    }

    /// What a function finds with the model, when it is its turn.
    pub(crate) async fn ask<Found: Send + 'static>(
        &self,
        find: impl FnOnce(&mut Model) -> Found + Send + 'static,
    ) -> Result<Found, ApiError> {
        let _place = self.room.take(1)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let turn = Box::new(move |model: &mut Model| {
            if !answer.is_closed() {
                drop(answer.send(find(model)));
            }
        });
        let sent = self.jobs.send(turn);
        sent.map_err(|_| ApiError::fault("the model's thread has ended"))?;
        let lost = "the model's computation failed; the server's log says how";
        answered.await.map_err(|_| ApiError::fault(lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_never_fuller_than_it_may_be() {
        let room = Room::new(3);
        let two = room.take(2).unwrap();
        assert_eq!(room.take(2).unwrap_err(), ApiError::full(2));
        let one = room.take(1).unwrap();
        assert_eq!(room.inside.load(Ordering::Acquire), 3);
        drop(two);
        assert_eq!(room.inside.load(Ordering::Acquire), 1);
        drop(one);
        let body = room.take(4).unwrap_err().body();
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .ends_with("expected at most 3")
        );
    }
}
