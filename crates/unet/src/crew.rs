//! Several threads at one forward pass.
//!
//! The thread that runs a pass leads it. Threads that have nothing else to do help: they take parts of whatever the leader is at,
//! and come and go as they like, so that nobody ever waits for a thread that is not there.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread looks for news before it sleeps: about as long as waking up takes.
/// Told by the clock, because one and the same instruction to pause takes 140 cycles on one CPU and 40 on another.
const PATIENCE: Duration = Duration::from_micros(50);
/// Looks between two looks at the clock.
const LOOKS: usize = 16;

/// What is to be done: called by each thread once, it works until nothing is left, in a scratch of that thread.
type Task<'a> = dyn Fn(&mut [f32]) + Sync + 'a;

/// A leader and its helpers.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    state: Mutex<State>,
    /// To helpers: there is a new task, or the leader has left.
    news: Condvar,
    /// To the leader: a helper has come back.
    back: Condvar,
    /// Copies of `State::tasks` and `State::working`, to look at without the lock.
    tasks: AtomicUsize,
    working: AtomicUsize,
    helpers: AtomicUsize,
    open: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    task: Option<Published>,
    /// Tasks published so far.
    tasks: usize,
    /// Helpers at the present task.
    working: usize,
    /// Helpers and leaders that sleep.
    asleep: usize,
}

/// A task whose lifetime is that of [`Crew::run`].
#[derive(Debug, Clone, Copy)]
struct Published(*const Task<'static>);

// SAFETY: what is pointed to may be called from any thread (`Sync`); `Crew::run` sees that it outlives all calls.
unsafe impl Send for Published {}

impl Crew {
    /// From now on there is a leader, and helpers are welcome, until what is returned is dropped.
    pub(crate) fn lead(&self) -> Leadership<'_> {
        self.open.store(true, Ordering::SeqCst);
        Leadership(self)
    }

    /// Whether there is a leader, and how many help.
    pub(crate) fn helpers(&self) -> Option<usize> {
        self.open.load(Ordering::SeqCst).then(|| self.helpers.load(Ordering::SeqCst))
    }

    /// For each item, by whichever thread takes it, in that thread's scratch; the caller's is `scratch`.
    /// Items are taken in their order.
    pub(crate) fn each<I>(&self, scratch: &mut [f32], items: I, work: impl Fn(I::Item, &mut [f32]) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        let items = Mutex::new(items);
        self.run(scratch, &|scratch: &mut [f32]| {
            loop {
                // A poisoned lock means that an iterator panicked: then there is nothing left to take.
                let Some(item) = items.lock().ok().and_then(|mut items| items.next()) else { return };
                work(item, scratch);
            }
        });
    }

    /// Runs a task on the leader and all helpers that come.
    fn run(&self, scratch: &mut [f32], task: &Task<'_>) {
        /// Takes the task back, also if the leader panics: no helper begins any more, and those at work come back first.
        struct Recall<'a>(&'a Crew);
        impl Drop for Recall<'_> {
            fn drop(&mut self) {
                self.0.recall();
            }
        }

        // SAFETY: only the lifetime changes. `Recall` takes the pointer away and waits for all who use it before this function returns.
        let published = Published(unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) });
        let mut state = self.lock();
        state.task = Some(published);
        state.tasks += 1;
        self.tasks.store(state.tasks, Ordering::SeqCst);
        if state.asleep > 0 {
            self.news.notify_all();
        }
        drop(state);
        let recall = Recall(self);
        task(scratch);
        drop(recall);
    }

    fn recall(&self) {
        self.lock().task = None;
        look_for(|| self.working.load(Ordering::SeqCst) == 0);
        let mut state = self.lock();
        while state.working > 0 {
            state.asleep += 1;
            state = self.back.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.asleep -= 1;
        }
    }

    /// Helps until the leader leaves.
    pub(crate) fn help(&self, scratch: &mut [f32]) {
        /// Tells the leader that this helper is back, also if the task panics.
        struct Back<'a>(&'a Crew);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                let mut state = self.0.lock();
                state.working -= 1;
                self.0.working.store(state.working, Ordering::SeqCst);
                if state.asleep > 0 {
                    self.0.back.notify_all();
                }
            }
        }
        struct Leave<'a>(&'a Crew);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.helpers.fetch_sub(1, Ordering::SeqCst);
            }
        }

        self.helpers.fetch_add(1, Ordering::SeqCst);
        let _leave = Leave(self);
        let mut seen = 0;
        loop {
            let is_open = || self.open.load(Ordering::SeqCst);
            look_for(|| self.tasks.load(Ordering::SeqCst) != seen || !is_open());
            let mut state = self.lock();
            while state.tasks == seen && is_open() {
                state.asleep += 1;
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
            if !is_open() {
                return;
            }
            seen = state.tasks;
            let Some(Published(task)) = state.task else { continue };
            state.working += 1;
            self.working.store(state.working, Ordering::SeqCst);
            drop(state);
            let _back = Back(self);
            // SAFETY: the leader waits until this helper is back before what is pointed to ends; `working` was raised while the task
            // was still published.
            unsafe { (*task)(scratch) };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lasts as long as there is a leader.
#[derive(Debug)]
pub(crate) struct Leadership<'a>(&'a Crew);

impl Drop for Leadership<'_> {
    fn drop(&mut self) {
        // Under the lock, so that no helper can fall asleep between looking and being woken.
        let state = self.0.lock();
        self.0.open.store(false, Ordering::SeqCst);
        drop(state);
        self.0.news.notify_all();
    }
}

/// Waits a little while for something to become true.
fn look_for(mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if is_true() {
                return;
            }
            std::hint::spin_loop();
        }
        if begun.elapsed() > PATIENCE {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_with_any_number_of_helpers() {
        for helpers in [0, 1, 3, 8] {
            let crew = Crew::default();
            let leadership = crew.lead();
            let mut values = vec![0_u32; 10_000];
            std::thread::scope(|scope| {
                (0..helpers).for_each(|_| drop(scope.spawn(|| crew.help(&mut [0.0; 4]))));
                for round in 1..=200 {
                    crew.each(&mut [0.0; 4], values.chunks_mut(97).enumerate(), |(i, chunk), scratch| {
                        scratch[0] = i as f32;
                        chunk.iter_mut().for_each(|v| *v += 1);
                        assert_eq!(scratch[0], i as f32, "nobody else works in this scratch");
                    });
                    assert!(values.iter().all(|v| *v == round));
                }
                drop(leadership);
            });
            assert_eq!(crew.helpers(), None);
        }
    }

    #[test]
    fn a_panic_reaches_the_leader_and_leaves_nobody_waiting() {
        let crew = Crew::default();
        let leadership = crew.lead();
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| crew.help(&mut []));
            let leader = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                crew.each(&mut [], 0..1000, |i, _| assert!(i < 500, "item {i}"));
            }));
            drop(leadership);
            // Whoever took item 500 has panicked, and perhaps the other one with 501.
            let helper = helper.join();
            assert!(leader.is_err() || helper.is_err());
        });
    }
}
