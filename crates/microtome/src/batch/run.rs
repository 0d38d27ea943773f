//! The order of work: which slide is next, who has it, and when all are done.
//!
//! One thread prepares: it finds the next slide that is to be done, opens it (and copies it first, if so asked), and hands it over to the first
//! of the [`jobs`](super::Options::jobs) threads that is free. So one slide is always open ahead, with its directories read and the level
//! that tissue is looked for on under way from the disk, and none lies with a thread that is busy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microtome_io::slide::SlideReader;

use super::events::{About, Events, What};
use super::folder::{SlideReport, Slides, Status, put_json, tidy};
use super::lease::{Claim, Lease, Leases};
use super::manifest::{Entry, Fault};
use super::shard::{self, Keep};
use super::stage::Staging;
use super::summary::report;
use super::work::{Failure, Opened};
use super::{Batch, By, Finished, Outcome, Planned, Task, Watcher};
use crate::{Error, Result};

/// How often somebody who waits looks around.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is looked whether others have finished what they work at: each look asks the disk, or a server.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(1);

/// A slide that is to be done.
struct Job<'m> {
    /// Its place among those of the shard.
    number: usize,
    entry: &'m Entry,
    key: String,
    /// Its report before this run, by which it is seen whether another process has tried meanwhile.
    before: Option<SlideReport>,
}

/// A slide that can be worked at.
struct Prepared<'m, 's> {
    job: Job<'m>,
    opened: Result<Opened<'s>, Failure>,
    /// Copies are made of slides that are this process's. One that is only opened ahead may go to another meanwhile.
    lease: Option<Lease>,
}

/// What the threads share.
struct Shared<'m, 's> {
    state: Mutex<State<'m, 's>>,
    news: Condvar,
}

#[derive(Default)]
struct State<'m, 's> {
    ready: Option<Prepared<'m, 's>>,
    /// Slides with a thread.
    at_work: usize,
    /// Slides that others have.
    elsewhere: VecDeque<Job<'m>>,
    /// Nothing comes any more.
    closed: bool,
    outcomes: BTreeMap<usize, Outcome>,
    /// The first error that concerns the batch and no slide.
    error: Option<Error>,
}

impl<'m, 's> Shared<'m, 's> {
    fn lock(&self) -> MutexGuard<'_, State<'m, 's>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for news, or for as long as nobody wants to wait without looking around.
    fn wait<'g>(&self, guard: MutexGuard<'g, State<'m, 's>>, most: Duration) -> MutexGuard<'g, State<'m, 's>> {
        self.news.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends everything with this error, unless there is one already.
    fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        state.closed = true;
        drop(state);
        self.news.notify_all();
    }
}

impl Batch<'_> {
    /// Runs over all slides of the shard that are not done.
    ///
    /// Memory: that of the segmenter's settings, whatever the number of jobs, plus the directories of one slide that is opened ahead.
    ///
    /// # Errors
    /// Those that concern no slide in particular: the folder cannot be written. Of slides the [outcomes](Finished::outcomes) tell.
    pub fn run(&self, watcher: &dyn Watcher) -> Result<Finished> {
        self.folder.create()?;
        tidy(self.folder.path());
        let entries = self.entries(Keep::Yes)?;
        let mut outcomes = BTreeMap::new();
        let mut jobs = VecDeque::new();
        for (number, entry) in entries.iter().copied().enumerate() {
            let key = self.key(entry);
            let done = (self.options.existing != crate::Existing::Replace).then(|| self.done(entry, &key)).flatten();
            if let Some(done) = done {
                let outcome = self.finished(entry, done.code, By::EarlierRun);
                watcher.ends(&outcome);
                outcomes.insert(number, outcome);
            } else {
                let before = SlideReport::read(&self.folder.slide(&entry.id));
                jobs.push_back(Job { number, entry, key, before });
            }
        }
        let alone = self.options.shard.is_none();
        if !jobs.is_empty() {
            put_json(&self.folder.slides(), &Slides::of(self.manifest))?;
            outcomes = self.work_off(jobs, outcomes, watcher)?;
        }
        let stopped = outcomes.len() < entries.len();
        if alone && !stopped {
            report(self.folder.path(), self.options.identify)?;
        }
        let waiting = |entry: &Entry| Outcome {
            id: entry.id.clone(),
            line: entry.line,
            status: Status::Waiting,
            code: 0,
            error: None,
            by: By::ThisRun,
            seconds: 0.0,
        };
        let outcomes = entries
            .iter()
            .enumerate()
            .map(|(number, entry)| outcomes.remove(&number).unwrap_or_else(|| waiting(entry)))
            .collect();
        Ok(Finished { outcomes, stopped })
    }

    /// What a run would do. Slides are opened, none is decoded, and nothing is written.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn plan(&self, watcher: &dyn Watcher) -> Result<Vec<Planned>> {
        let mut plans = Vec::new();
        for entry in self.entries(Keep::No)? {
            if watcher.cancelled() {
                return Err(Error::Interrupted);
            }
            let task = match self.done(entry, &self.key(entry)) {
                Some(_) => Task::Done,
                None => self.task(entry, watcher),
            };
            plans.push(Planned { id: entry.id.clone(), line: entry.line, task });
        }
        Ok(plans)
    }

    /// Slides and regions that are not there now, of those of the shard that are not done: each will fail.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn missing(&self) -> Result<Vec<Fault>> {
        let entries = self.entries(Keep::No)?.into_iter();
        let absent = entries.filter_map(|entry| {
            let faults: Vec<Fault> = entry.missing().collect();
            // Whether it is done is asked of those only of which something is missing.
            (!faults.is_empty() && self.done(entry, &self.key(entry)).is_none()).then_some(faults)
        });
        Ok(absent.flatten().collect())
    }

    fn task(&self, entry: &Entry, watcher: &dyn Watcher) -> Task {
        let planned = self.open(entry, None, watcher).and_then(|opened| {
            let settings = self.settings(entry, opened.slide.as_ref());
            Ok(self.segmenter.with(settings)?.plan(opened.slide.as_ref())?)
        });
        match planned {
            Ok(plan) => {
                let size = plan.geometry.target.size;
                Task::Run { size, tiles: plan.tiles, memory: plan.memory.total() }
            }
            Err(Failure { code, text }) => Task::Impossible { error: self.discreet(&text, entry), code },
        }
    }

    /// The slides of the shard.
    fn entries(&self, keep: Keep) -> Result<Vec<&Entry>> {
        let all = self.manifest.entries();
        let Some(shard) = self.options.shard else { return Ok(all.iter().collect()) };
        let mine = shard::select(all, shard, &self.folder, keep)?;
        Ok(all.iter().zip(mine).filter_map(|(entry, mine)| mine.then_some(entry)).collect())
    }

    fn finished(&self, entry: &Entry, code: u8, by: By) -> Outcome {
        let (id, line) = (entry.id.clone(), entry.line);
        Outcome { id, line, status: Status::Done, code, error: None, by, seconds: 0.0 }
    }

    /// A slide whose own folder cannot be used fails, which only the events can tell later; the others go on.
    pub(super) fn unusable(&self, entry: &Entry, error: Error, events: &Events) -> Outcome {
        let Failure { code, text } = Failure::from(error);
        let error = Some(self.discreet(&text, entry));
        let (id, group) = (Some(entry.id.as_str()), entry.group.as_deref());
        let about = About { id, group, code: Some(code), error: error.as_deref(), ..About::default() };
        // Best effort: the outcome says it, too.
        let _ = events.add(What::SlideFailed, &about);
        Outcome { status: Status::Failed, error, ..self.finished(entry, code, By::ThisRun) }
    }

    fn work_off<'m>(
        &'m self,
        jobs: VecDeque<Job<'m>>,
        outcomes: BTreeMap<usize, Outcome>,
        watcher: &dyn Watcher,
    ) -> Result<BTreeMap<usize, Outcome>> {
        let events = Events::open(&self.folder.events(self.options.shard), self.options.shard)?;
        events.add(What::BatchStarted, &About::default())?;
        let staging = self
            .options
            .stage
            .as_ref()
            .map(|stage| Staging::new(stage).map_err(|source| Error::Io { path: stage.folder.clone(), source }));
        let staging = staging.transpose()?;
        // Shards are disjoint: there is nobody to share with.
        let leases = self.options.shard.is_none().then(|| Leases::new(self.options.lease_expiry));
        let leases = leases.as_ref();
        let shared = Shared { state: Mutex::new(State { outcomes, ..State::default() }), news: Condvar::new() };
        let heart = Mutex::new(true);
        let still = Condvar::new();
        std::thread::scope(|scope| {
            if let Some(leases) = leases {
                scope.spawn(|| {
                    let mut beats = heart.lock().unwrap_or_else(PoisonError::into_inner);
                    while *beats {
                        beats = still.wait_timeout(beats, leases.pulse()).unwrap_or_else(PoisonError::into_inner).0;
                        leases.beat();
                    }
                });
            }
            std::thread::scope(|scope| {
                scope.spawn(|| self.prepare(jobs, staging.as_ref(), leases, &events, &shared, watcher));
                for _ in 0..self.options.jobs {
                    scope.spawn(|| self.worker(leases, &events, &shared, watcher));
                }
            });
            *heart.lock().unwrap_or_else(PoisonError::into_inner) = false;
            still.notify_all();
        });
        let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.error {
            return Err(error);
        }
        events.add(What::BatchEnded, &About::default())?;
        Ok(state.outcomes)
    }

    /// Hands slides over, one after the other; then those that others had and did not finish.
    fn prepare<'m, 's>(
        &self,
        jobs: VecDeque<Job<'m>>,
        staging: Option<&'s Staging>,
        leases: Option<&Leases>,
        events: &Events,
        shared: &Shared<'m, 's>,
        watcher: &dyn Watcher,
    ) {
        let mut jobs = jobs;
        loop {
            while let Some(job) = jobs.pop_front() {
                if watcher.cancelled() || shared.lock().closed {
                    break;
                }
                match self.elsewhere(&job, leases) {
                    Elsewhere::No => {}
                    Elsewhere::Yes => {
                        shared.lock().elsewhere.push_back(job);
                        continue;
                    }
                    Elsewhere::Ended(outcome) => {
                        watcher.ends(&outcome);
                        shared.lock().outcomes.insert(job.number, outcome);
                        continue;
                    }
                }
                let lease = match leases.filter(|_| staging.is_some()).map(|leases| self.claim(&job, leases)) {
                    None => None,
                    Some(Ok(Claim::Ours(lease))) => Some(lease),
                    Some(Ok(Claim::Theirs)) => {
                        shared.lock().elsewhere.push_back(job);
                        continue;
                    }
                    Some(Err(error)) => {
                        let outcome = self.unusable(job.entry, error, events);
                        watcher.ends(&outcome);
                        shared.lock().outcomes.insert(job.number, outcome);
                        continue;
                    }
                };
                let opened = self.open(job.entry, staging, watcher);
                if let Ok(opened) = &opened {
                    self.ahead(job.entry, opened.slide.as_ref());
                }
                if !hand_over(Prepared { job, opened, lease }, leases, shared, watcher) {
                    break;
                }
            }
            // Whoever is at work may still give a slide back to those that others have.
            let mut state = shared.lock();
            while state.elsewhere.is_empty() && state.at_work > 0 && !state.closed && !watcher.cancelled() {
                state = shared.wait(state, LOOK);
            }
            if state.elsewhere.is_empty() || state.closed || watcher.cancelled() {
                state.closed = true;
                drop(state);
                return shared.news.notify_all();
            }
            jobs = std::mem::take(&mut state.elsewhere);
            let pause = shared.wait(state, LOOK_AT_OTHERS);
            drop(pause);
        }
    }

    /// Announces the bytes that a run reads first. What is wrong with the slide or its settings, the run will say.
    fn ahead(&self, entry: &Entry, slide: &dyn SlideReader) {
        if let Ok(segmenter) = self.segmenter.with(self.settings(entry, slide)) {
            segmenter.prefetch(slide);
        }
    }

    fn claim(&self, job: &Job<'_>, leases: &Leases) -> Result<Claim> {
        let folder = self.folder.slide(&job.entry.id);
        folder.create()?;
        leases.claim(&folder)
    }

    /// Whether another process has the slide, or has finished it.
    fn elsewhere(&self, job: &Job<'_>, leases: Option<&Leases>) -> Elsewhere {
        let Some(leases) = leases else { return Elsewhere::No };
        let folder = self.folder.slide(&job.entry.id);
        if leases.is_theirs(&folder) {
            return Elsewhere::Yes;
        }
        self.ended_elsewhere(job).map_or(Elsewhere::No, Elsewhere::Ended)
    }

    /// What another process has made of the slide since this run began.
    fn ended_elsewhere(&self, job: &Job<'_>) -> Option<Outcome> {
        let Job { entry, key, before, .. } = job;
        let report =
            SlideReport::read(&self.folder.slide(&entry.id)).filter(|report| Some(report) != before.as_ref())?;
        match report.status {
            Status::Done => self.done(entry, key).map(|done| self.finished(entry, done.code, By::OtherProcess)),
            Status::Failed => Some(Outcome {
                status: Status::Failed,
                error: report.error,
                ..self.finished(entry, report.code, By::OtherProcess)
            }),
            Status::Waiting => None,
        }
    }

    /// Works at what is handed over, until nothing comes any more.
    fn worker(&self, leases: Option<&Leases>, events: &Events, shared: &Shared<'_, '_>, watcher: &dyn Watcher) {
        loop {
            let mut state = shared.lock();
            let prepared = loop {
                if let Some(prepared) = state.ready.take() {
                    break prepared;
                }
                if state.closed {
                    return;
                }
                state = shared.wait(state, LOOK);
            };
            state.at_work += 1;
            drop(state);
            shared.news.notify_all();
            self.one(prepared, leases, events, shared, watcher);
            shared.lock().at_work -= 1;
            shared.news.notify_all();
        }
    }

    fn one<'m, 's>(
        &self,
        prepared: Prepared<'m, 's>,
        leases: Option<&Leases>,
        events: &Events,
        shared: &Shared<'m, 's>,
        watcher: &dyn Watcher,
    ) {
        let Prepared { job, opened, lease } = prepared;
        let give_back = |lease: Option<Lease>| {
            if let (Some(lease), Some(leases)) = (lease, leases) {
                leases.release(lease);
            }
        };
        if watcher.cancelled() {
            return give_back(lease);
        }
        let lease = match (lease, leases) {
            (None, Some(leases)) => match self.claim(&job, leases) {
                Ok(Claim::Ours(lease)) => Some(lease),
                Ok(Claim::Theirs) => return shared.lock().elsewhere.push_back(job),
                Err(error) => {
                    let outcome = self.unusable(job.entry, error, events);
                    watcher.ends(&outcome);
                    shared.lock().outcomes.insert(job.number, outcome);
                    return;
                }
            },
            (lease, _) => lease,
        };
        // Between looking and taking it, another one may have finished it.
        if leases.is_some()
            && let Some(outcome) = self.ended_elsewhere(&job)
        {
            give_back(lease);
            watcher.ends(&outcome);
            shared.lock().outcomes.insert(job.number, outcome);
            return;
        }
        let worked = self.work(job.entry, opened, &job.key, lease.as_ref(), events, watcher);
        let lost = lease.as_ref().is_some_and(Lease::is_lost);
        give_back(lease);
        match worked {
            Ok(Some(outcome)) => {
                watcher.ends(&outcome);
                shared.lock().outcomes.insert(job.number, outcome);
            }
            Ok(None) if lost && !watcher.cancelled() => shared.lock().elsewhere.push_back(job),
            Ok(None) => {}
            Err(error) => shared.fail(error),
        }
    }
}

/// Where a slide is that another process may have.
enum Elsewhere {
    No,
    Yes,
    Ended(Outcome),
}

/// Gives a slide to the next thread that is free; false if nobody takes it.
fn hand_over<'m, 's>(
    prepared: Prepared<'m, 's>,
    leases: Option<&Leases>,
    shared: &Shared<'m, 's>,
    watcher: &dyn Watcher,
) -> bool {
    let mut state = shared.lock();
    state.ready = Some(prepared);
    shared.news.notify_all();
    while state.ready.is_some() {
        if !(state.closed || watcher.cancelled()) {
            state = shared.wait(state, LOOK);
            continue;
        }
        let back = state.ready.take();
        drop(state);
        if let (Some(lease), Some(leases)) = (back.and_then(|prepared| prepared.lease), leases) {
            leases.release(lease);
        }
        return false;
    }
    true
}
