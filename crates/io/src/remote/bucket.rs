//! A bucket, and requests to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::fault::{self, Cause};
use super::url::Url;
use crate::{Error, Result};

/// How often a request is made at most, unless `AWS_MAX_ATTEMPTS` says otherwise.
const ATTEMPTS: usize = 10;
/// After this time a request that fails is not made again.
const PATIENCE: Duration = Duration::from_mins(3);
/// Where a machine in Amazon's cloud finds its credentials, and how long it is waited for.
const METADATA_SERVICE: ([u8; 4], u16) = ([169, 254, 169, 254], 80);
const METADATA_PATIENCE: Duration = Duration::from_secs(1);

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    name: String,
    store: Box<dyn ObjectStore>,
    /// Where what belongs to runs is kept, if not where it usually is.
    state: Option<PathBuf>,
}

/// Those that were asked for: with their connections, and credentials that were fetched.
static BUCKETS: Mutex<BTreeMap<String, Arc<Bucket>>> = Mutex::new(BTreeMap::new());

/// Makes a bucket of this name in memory, for tests: whoever names it in this process gets it, and no network is asked. What belongs to runs is kept in
/// the folder `state`.
#[doc(hidden)]
pub fn in_memory(name: &str, state: &Path) {
    let bucket = Bucket { name: name.into(), store: Box::new(InMemory::new()), state: Some(state.into()) };
    BUCKETS.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), Arc::new(bucket));
}

/// The folder that was given for a bucket in memory.
pub(super) fn state_of(output: &Path) -> Option<PathBuf> {
    let bucket = Url::parse(output).ok()?.bucket;
    BUCKETS.lock().unwrap_or_else(PoisonError::into_inner).get(&bucket)?.state.clone()
}

impl Bucket {
    /// The bucket of a URL. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Io`] if there are no credentials, [`Error::Usage`] for variables of the environment that cannot be.
    pub(super) fn of(url: &Url, path: &Path) -> Result<Arc<Self>> {
        let mut buckets = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get(&url.bucket) {
            return Ok(Arc::clone(bucket));
        }
        let store = connect(&url.bucket, path)?;
        let bucket = Arc::new(Self { name: url.bucket.clone(), store, state: None });
        buckets.insert(url.bucket.clone(), Arc::clone(&bucket));
        Ok(bucket)
    }

    /// What is known of an object, if there is one.
    pub(super) fn head(&self, key: &Key, path: &Path) -> Result<Option<ObjectMeta>> {
        self.if_there(path, || self.store.head(key))
    }

    /// An object of at most `limit` bytes, if there is one.
    pub(super) fn get(&self, key: &Key, limit: u64, path: &Path) -> Result<Option<Vec<u8>>> {
        let request = || async {
            let found = self.store.get_opts(key, GetOptions::default()).await?;
            let size = found.meta.size;
            // What is larger is not fetched.
            if size > limit { Ok(Err(size)) } else { found.bytes().await.map(Ok) }
        };
        match self.if_there(path, request)? {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes.into())),
            Some(Err(size)) => {
                let message = format!("the object has {size} bytes, more than the {limit} that are allowed here");
                Err(Error::limits(path, message))
            }
        }
    }

    /// A range of an object that is still the one that was looked at.
    pub(super) fn get_range(&self, object: &ObjectMeta, range: Range<u64>, path: &Path) -> Result<Vec<u8>> {
        let options =
            || GetOptions::new().with_range(Some(GetRange::Bounded(range.clone()))).with_if_match(object.e_tag.clone());
        let request = || async { self.store.get_opts(&object.location, options()).await?.bytes().await };
        let bytes = self.request(request).map_err(|error| match fault::cause(&error) {
            Cause::Conflict => changed(path),
            _ => fault::error(path, &self.name, &error),
        })?;
        let expected = range.end - range.start;
        if bytes.len() as u64 == expected { Ok(bytes.into()) } else { Err(changed(path)) }
    }

    /// Puts an object, in the place of any that is there.
    pub(super) fn put(&self, key: &Key, bytes: &[u8], path: &Path) -> Result<()> {
        let payload = PutPayload::from(bytes.to_vec());
        self.request(|| self.store.put(key, payload.clone()))
            .map(|_| ())
            .map_err(|error| fault::error(path, &self.name, &error))
    }

    /// Puts an object where there is none; says whether it is there now. Of several that try, one does so.
    pub(super) fn put_new(&self, key: &Key, bytes: &[u8], path: &Path) -> Result<bool> {
        let payload = PutPayload::from(bytes.to_vec());
        match self.request(|| self.store.put_opts(key, payload.clone(), PutMode::Create.into())) {
            Ok(_) => Ok(true),
            // An attempt that seemed to fail may have succeeded.
            Err(error) if fault::cause(&error) == Cause::Conflict => match self.get(key, bytes.len() as u64, path) {
                // Longer than ours, and so another one's.
                Err(Error::Limits { .. }) => Ok(false),
                found => Ok(found?.as_deref() == Some(bytes)),
            },
            // Services without conditions (`AWS_CONDITIONAL_PUT=disabled`): then nothing but what was looked at before decides.
            Err(error) if fault::cause(&error) == Cause::Unable => self.put(key, bytes, path).map(|()| true),
            Err(error) => Err(fault::error(path, &self.name, &error)),
        }
    }

    /// Deletes an object, if there is one.
    pub(super) fn delete(&self, key: &Key, path: &Path) -> Result<()> {
        self.if_there(path, || self.store.delete(key)).map(|_| ())
    }

    /// Deletes all objects whose keys begin with this one and a slash.
    pub(super) fn delete_all(&self, prefix: &Key, path: &Path) -> Result<()> {
        let request = || async {
            let found = self.store.list(Some(prefix)).map_ok(|object| object.location).boxed();
            let mut deleted = self.store.delete_stream(found);
            while let Some(deleted) = deleted.next().await {
                match deleted {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.request(request).map_err(|error| fault::error(path, &self.name, &error))
    }

    /// The objects and groups right under a prefix.
    pub(super) fn list(&self, prefix: &Key, path: &Path) -> Result<ListResult> {
        self.request(|| self.store.list_with_delimiter(Some(prefix)))
            .map_err(|error| fault::error(path, &self.name, &error))
    }

    /// True if there is an object under a prefix.
    pub(super) fn any(&self, prefix: &Key, path: &Path) -> Result<bool> {
        let request = || async {
            let mut found = self.store.list(Some(prefix));
            // Consoles put an object `KEY/` in the place of a folder, which is nothing.
            while let Some(object) = found.next().await.transpose()? {
                if object.location != *prefix {
                    return Ok(Some(object));
                }
            }
            Ok(None)
        };
        let found = self.request(request).map_err(|error| fault::error(path, &self.name, &error))?;
        Ok(found.is_some())
    }

    /// Calls with the key and size of each object under a prefix.
    pub(super) fn walk(&self, prefix: &Key, path: &Path, found: &mut dyn FnMut(&Key, u64)) -> Result<()> {
        // Collected first: a list that is cut off is asked for again from its beginning.
        let request = || async { self.store.list(Some(prefix)).map_ok(|o| (o.location, o.size)).try_collect().await };
        let all: Vec<(Key, u64)> = self.request(request).map_err(|error| fault::error(path, &self.name, &error))?;
        all.iter().for_each(|(key, size)| found(key, *size));
        Ok(())
    }

    /// What there is of something, if it is there.
    fn if_there<T, F>(&self, path: &Path, request: impl Fn() -> F) -> Result<Option<T>>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        match self.request(request) {
            Ok(found) => Ok(Some(found)),
            Err(error) if fault::cause(&error) == Cause::Absent => Ok(None),
            Err(error) => Err(fault::error(path, &self.name, &error)),
        }
    }

    /// Makes a request until it succeeds, or fails for good.
    ///
    /// Where the service says that it cannot, and where a request that changes nothing is cut off, object_store asks again by itself, and what
    /// comes here has failed for good. It does not where a request that changes something is cut off, since it cannot know that all of ours may be made
    /// twice, nor where an answer is.
    fn request<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        let runtime = runtime()?;
        let begun = Instant::now();
        let mut wait = Duration::from_millis(100);
        for _ in 1..attempts() {
            match runtime.block_on(request()) {
                Err(error) if fault::cause(&error) == Cause::Broken && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(wait);
                    wait = (2 * wait).min(Duration::from_secs(15));
                }
                result => return result,
            }
        }
        runtime.block_on(request())
    }
}

fn changed(path: &Path) -> Error {
    Error::io(path, std::io::Error::other("the object has become another one while it was read"))
}

/// How often a request is made at most.
fn attempts() -> usize {
    let given = std::env::var("AWS_MAX_ATTEMPTS").ok().and_then(|text| text.trim().parse().ok());
    given.filter(|&attempts| attempts > 0).unwrap_or(ATTEMPTS)
}

/// The threads that serve connections.
fn runtime() -> object_store::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        // What TLS is made with; whoever has chosen something else before us has chosen for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("microtome-remote")
            .enable_all()
            .build()
            .map_err(|error| format!("threads for the network cannot be started: {error}"))
    });
    runtime.as_ref().map_err(|message| object_store::Error::Generic { store: "S3", source: message.clone().into() })
}

/// A client of the service for a bucket.
fn connect(bucket: &str, path: &Path) -> Result<Box<dyn ObjectStore>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    check_credentials(path, &variable)?;
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(RetryConfig {
        max_retries: attempts() - 1,
        retry_timeout: PATIENCE,
        ..RetryConfig::default()
    });
    if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = super::endpoint() {
        if endpoint.starts_with("http://") {
            // Whoever writes it so means it.
            builder = builder.with_allow_http(true);
        }
        builder = builder.with_config(AmazonS3ConfigKey::Endpoint, endpoint);
    }
    match runtime().and_then(|runtime| {
        let _inside = runtime.enter();
        builder.build()
    }) {
        Ok(store) => Ok(Box::new(store)),
        Err(error) => Err(Error::usage(path, format!("the settings of the object store cannot be (AWS_*): {error}"))),
    }
}

/// Refuses where no credentials can be, before anybody waits for a service that there is only in Amazon's cloud.
fn check_credentials(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    let given = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
    ];
    let unsigned =
        variable("AWS_SKIP_SIGNATURE").is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1");
    if unsigned || given.iter().any(|name| variable(name).is_some()) {
        return Ok(());
    }
    let disabled = variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let service = || std::net::TcpStream::connect_timeout(&METADATA_SERVICE.into(), METADATA_PATIENCE);
    if !disabled && service().is_ok() {
        return Ok(());
    }
    let message = "there are no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY give them; AWS_SKIP_SIGNATURE=true does without, \
                   where everybody may read";
    Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::PermissionDenied, message)))
}
