//! The Slurm files under a Slurm of our own: one node, under the target directory, started here and stopped afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::archive::{Archive, FLAGS};
use crate::shell;
use crate::workspace::Workspace;

/// Shards of the archive.
const SHARDS: u32 = 4;
/// The task whose program is killed.
const KILLED: u32 = 1;
/// The task that is told to stop, as Slurm tells it before a time limit.
const STOPPED: u32 = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(20);

/// Submits the archive, kills a task, stops another, and compares. The program is built unless it is given.
pub(super) fn run(workspace: &Workspace, binary: Option<&Path>) -> Result<()> {
    let names = ["munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel"];
    let mut programs = BTreeMap::new();
    for name in names {
        let Some(path) = find(name) else {
            println!("skipped: no {}", if name == "munged" { "munged" } else { "slurmctld" });
            return Ok(());
        };
        programs.insert(name, path);
    }
    let archive = Archive::prepare(workspace, "slurm", binary)?;
    let mut slurm = Slurm::start(&archive.folder.join("daemons"), programs)?;
    let result = check(workspace, &archive, &slurm);
    slurm.stop();
    if result.is_err() {
        eprintln!("logs are in {}", archive.folder.display());
    }
    result
}

fn check(workspace: &Workspace, archive: &Archive, slurm: &Slurm) -> Result<()> {
    let deploy = workspace.root.join("deploy/slurm");
    let out = archive.folder.join("masks");
    // The GPU variant can only be looked at.
    let mut test = slurm.command("sbatch");
    test.arg("--test-only").arg("--array=0-3").arg(deploy.join("shard-gpu.sbatch"));
    shell::run(test.arg(&archive.manifest).arg(&archive.model).arg(&out))?;

    let mut submit = Command::new(deploy.join("submit.sh"));
    slurm.environment(&mut submit).current_dir(&archive.folder).env("MICROTOME", &archive.binary);
    submit.args(["cpu", &SHARDS.to_string()]).arg(&archive.manifest).arg(&archive.model).arg(&out).args(FLAGS);
    eprintln!("$ {}", shell::show(&submit));
    let jobs: BTreeMap<String, String> = shell::read(&mut submit)?
        .lines()
        .filter_map(|line| line.split_once(' ').map(|(name, id)| (name.to_owned(), id.to_owned())))
        .collect();
    let job = |name: &str| jobs.get(name).with_context(|| format!("submit.sh named no job {name}"));
    let (array, merge) = (job("array")?, job("merge")?);

    let running = |number: u32| wait_for("a task that runs", || Ok(task(&archive.binary, number)));
    let (killed, _) = (running(KILLED)?, running(STOPPED)?);
    // Both have finished a slide by then, and have others before them.
    let has_finished_one = |shard: u32| {
        let events = fs::read_to_string(events_of(&out, shard)).unwrap_or_default();
        events.contains("\"slide-done\"")
    };
    wait_for("a slide that is done", || Ok((has_finished_one(KILLED) && has_finished_one(STOPPED)).then_some(())))?;
    shell::run(Command::new("kill").arg("-KILL").arg(killed.to_string()))?;
    let mut stop = slurm.command("scancel");
    shell::run(stop.args(["--batch", "--signal=TERM"]).arg(format!("{array}_{STOPPED}")))?;
    println!("  task {KILLED} was killed and task {STOPPED} told to stop");

    wait_for("the end of all jobs", || {
        let left = shell::read(slurm.command("squeue").args(["--noheader", "--format=%i %T %r"]))?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    let tasks = slurm.jobs(array)?;
    ensure!(tasks.len() == SHARDS as usize, "{} tasks in place of {SHARDS}", tasks.len());
    let mut codes = Vec::new();
    for task in &tasks {
        let of = |name: &str| task.get(name).cloned().unwrap_or_default();
        println!(
            "  task {}: {}, exit code {}, {} restarts",
            of("ArrayTaskId"),
            of("JobState"),
            of("ExitCode"),
            of("Restarts")
        );
        let disturbed = [KILLED, STOPPED].map(|number| number.to_string()).contains(&of("ArrayTaskId"));
        ensure!((of("Restarts") == "1") == disturbed, "only those that were killed or stopped run again");
        codes.push(of("ExitCode"));
    }
    let merged = slurm.jobs(merge)?;
    let merged = merged.first().context("no merge job")?;
    println!("  merge: {}, exit code {}", merged["JobState"], merged["ExitCode"]);
    ensure!(merged["ExitCode"] == "0:0", "the merge ended with {}", merged["ExitCode"]);

    // Which task had which slides, and what became of each.
    let shards = shards(&out)?;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for (shard, slides) in &shards {
        println!("  shard {shard}: {}", slides.keys().cloned().collect::<Vec<_>>().join(" "));
        for id in slides.keys() {
            if let Some(other) = seen.insert(id.clone(), *shard) {
                bail!("{id} is in the shards {other} and {shard}");
            }
        }
        let failed = slides.values().any(|sound| !sound);
        let all = slides.values().all(|sound| !sound);
        let expected = if all && !slides.is_empty() {
            "4:0"
        } else if failed {
            "3:0"
        } else {
            "0:0"
        };
        let task = tasks.iter().find(|task| task.get("ArrayTaskId") == Some(&shard.to_string()));
        let found = task.and_then(|task| task.get("ExitCode")).map(String::as_str);
        ensure!(found == Some(expected), "shard {shard} ended with {found:?} in place of {expected}");
    }
    ensure!(seen.keys().eq(Archive::slides().keys()), "the shards together are not the manifest: {:?}", seen.keys());
    println!("  the shards together are the manifest, no slide is in two");
    archive.compare(&out)
}

fn events_of(out: &Path, shard: u32) -> PathBuf {
    out.join(format!("events-{shard}-of-{SHARDS}.jsonl"))
}

/// What the shards' events tell: of each shard its slides, and whether they succeeded. A slide may begin twice, where a task was killed, and
/// ends once.
fn shards(out: &Path) -> Result<BTreeMap<u32, BTreeMap<String, bool>>> {
    let mut shards = BTreeMap::new();
    for shard in 0..SHARDS {
        let path = events_of(out, shard);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut slides = BTreeMap::new();
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let (Some(id), Some(name)) = (event["id"].as_str(), event["event"].as_str()) else { continue };
            let sound = match name {
                "slide-done" => true,
                "slide-failed" => false,
                _ => continue,
            };
            if slides.insert(id.to_owned(), sound) == Some(true) {
                bail!("{id} was done twice");
            }
        }
        shards.insert(shard, slides);
    }
    Ok(shards)
}

/// The process of a task's `microtome`.
fn task(binary: &Path, task: u32) -> Option<u32> {
    let wanted = format!("SLURM_ARRAY_TASK_ID={task}");
    fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        program.is_ok_and(|program| program == binary)
            && environment.split(|&b| b == 0).any(|variable| variable == wanted.as_bytes())
    })
}

/// Asks again and again.
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        ensure!(begun.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program in the path, or where daemons are.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The daemons of a cluster of one node.
struct Slurm {
    programs: BTreeMap<&'static str, PathBuf>,
    configuration: PathBuf,
    /// In the order in which they were started.
    daemons: Vec<(&'static str, Child)>,
}

impl Slurm {
    fn start(folder: &Path, programs: BTreeMap<&'static str, PathBuf>) -> Result<Self> {
        fs::create_dir_all(folder.join("state"))?;
        fs::create_dir_all(folder.join("spool"))?;
        let at = |name: &str| folder.join(name).display().to_string();
        let key: Vec<u8> = {
            use std::io::Read;
            let mut key = vec![0; 1024];
            fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
            key
        };
        private(&folder.join("munge.key"), &key)?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
        let user = shell::read(Command::new("id").arg("-un"))?.trim().to_owned();
        let [controller, node] = ports()?;
        // More cores and memory than there may be, so that the files run as they are, all tasks at once.
        let text = format!(
            "ClusterName=microtome\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\n\
             SlurmUser={user}\nSlurmdUser={user}\nAuthType=auth/munge\nAuthInfo=socket={},cred_expire=5\n\
             CredType=cred/munge\nStateSaveLocation={}\nSlurmdSpoolDir={}\nSlurmctldPidFile={}\nSlurmdPidFile={}\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_Core_Memory\nMpiDefault=none\nReturnToService=2\nMinJobAge=3600\nKillWait=30\n\
             SlurmdParameters=config_overrides\nJobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\nSchedulerParameters=sched_interval=2\nGresTypes=gpu\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=40 RealMemory=100000 Gres=gpu:1 State=UNKNOWN\n\
             PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n",
            at("munge.socket"),
            at("state"),
            at("spool"),
            at("slurmctld.pid"),
            at("slurmd.pid"),
        );
        let configuration = folder.join("slurm.conf");
        fs::write(&configuration, text)?;
        // Any file does for a GPU that nobody uses.
        fs::write(folder.join("gres.conf"), format!("NodeName={host} Name=gpu File=/dev/null\n"))?;
        let mut slurm = Self { programs, configuration, daemons: Vec::new() };
        let munge = [
            "--foreground".to_owned(),
            "--force".into(),
            format!("--socket={}", at("munge.socket")),
            format!("--key-file={}", at("munge.key")),
            format!("--pid-file={}", at("munge.pid")),
            format!("--log-file={}", at("munge.log")),
            format!("--seed-file={}", at("munge.seed")),
        ];
        slurm.daemon("munged", &munge, folder)?;
        slurm.daemon("slurmctld", &["-D".into()], folder)?;
        slurm.daemon("slurmd", &["-D".into(), "-N".into(), host], folder)?;
        wait_for("a node that is idle", || {
            let mut ask = slurm.command("scontrol");
            let nodes = ask.args(["show", "nodes", "--oneliner"]).output()?;
            Ok(String::from_utf8_lossy(&nodes.stdout).contains("State=IDLE ").then_some(()))
        })?;
        println!("  {} with one node", shell::read(slurm.command("scontrol").arg("--version"))?.trim());
        Ok(slurm)
    }

    fn daemon(&mut self, name: &'static str, arguments: &[String], folder: &Path) -> Result<()> {
        let log = fs::File::create(folder.join(format!("{name}.out")))?;
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        std::thread::sleep(Duration::from_secs(1));
        let ended = child.try_wait()?;
        self.daemons.push((name, child));
        if let Some(status) = ended {
            let said = fs::read_to_string(folder.join(format!("{name}.out"))).unwrap_or_default();
            self.stop();
            bail!("{name} ended at once ({status}): {}", said.trim());
        }
        Ok(())
    }

    fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("SLURM_CONF", &self.configuration)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.programs[name]);
        self.environment(&mut command);
        command
    }

    /// What Slurm says of the tasks of a job.
    fn jobs(&self, id: &str) -> Result<Vec<BTreeMap<String, String>>> {
        let text = shell::read(self.command("scontrol").args(["show", "job", "--oneliner", id]))?;
        let fields = |line: &str| {
            let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let mut jobs: Vec<BTreeMap<String, String>> = text.lines().filter(|l| !l.is_empty()).map(fields).collect();
        jobs.sort_by_key(|job| job.get("ArrayTaskId").cloned());
        Ok(jobs)
    }

    /// Ends jobs and daemons, the last one first.
    fn stop(&mut self) {
        // Best effort: whoever stops has had what it wanted, or an error that counts more.
        let _ = self.command("scancel").args(["--full", "--signal=KILL", "--me"]).output();
        let _ = self.command("scancel").arg("--me").output();
        for (_, daemon) in self.daemons.iter_mut().rev() {
            let _ = Command::new("kill").arg(daemon.id().to_string()).output();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(15) && matches!(daemon.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        self.daemons.clear();
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two ports that are free.
fn ports() -> Result<[u16; 2]> {
    let sockets = [std::net::TcpListener::bind("127.0.0.1:0")?, std::net::TcpListener::bind("127.0.0.1:0")?];
    Ok([sockets[0].local_addr()?.port(), sockets[1].local_addr()?.port()])
}

/// Writes a file that nobody else may read.
fn private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}
