//! What every [`ImageSink`] promises, tested on each.

use std::sync::Arc;

use microtome_io::store::{Compression, Encoding, Format, ImageSink, MemoryImage, OmeZarr, StoredImage, ZarrImage};
use microtome_io::{Error, Level, Pixels, SampleType, Size, TileCoord};

use serde_json::{Map, Value};

use super::{content, cut, image, picture, shards, write_all};

/// A sink under test, and how its pixels are read back.
struct Subject {
    sink: Arc<dyn ImageSink>,
    read: Box<dyn Fn(Level) -> Pixels>,
    attributes: Box<dyn Fn() -> Map<String, Value>>,
}

impl Subject {
    fn pixels(&self, level: Level) -> Pixels {
        (self.read)(level)
    }
}

impl std::ops::Deref for Subject {
    type Target = dyn ImageSink;

    fn deref(&self) -> &Self::Target {
        &*self.sink
    }
}

fn memory(image: StoredImage) -> Subject {
    let sink = Arc::new(MemoryImage::new(image).unwrap());
    let (levels, attributes) = (sink.clone(), sink.clone());
    Subject {
        sink,
        read: Box::new(move |level| levels.level(level).unwrap()),
        attributes: Box::new(move || attributes.attributes().unwrap()),
    }
}

fn on_disk(image: StoredImage) -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let sink = Arc::new(ZarrImage::create(&path, image).unwrap());
    let read = move |level: Level| {
        // The folder lives as long as this.
        let store = OmeZarr::open(folder.path().join("mask.ome.zarr")).unwrap();
        store.read_region(level, store.info().levels[level.0].size.rect()).unwrap()
    };
    let attributes = move || OmeZarr::open(&path).unwrap().info().attributes.clone();
    Subject { sink, read: Box::new(read), attributes: Box::new(attributes) }
}

fn encoded(image: StoredImage, format: Format, compression: Compression) -> Subject {
    on_disk(StoredImage { encoding: Encoding { format, compression }, ..image })
}

fn shuffled(image: StoredImage) -> Subject {
    encoded(image, Format::V0_5, Compression::Blosc { level: 1 })
}

fn deflated(image: StoredImage) -> Subject {
    encoded(image, Format::V0_5, Compression::Gzip { level: 1 })
}

fn version_0_4(image: StoredImage) -> Subject {
    encoded(image, Format::V0_4, Compression::default())
}

fn shuffled_0_4(image: StoredImage) -> Subject {
    encoded(image, Format::V0_4, Compression::Blosc { level: 1 })
}

fn plain_0_4(image: StoredImage) -> Subject {
    encoded(image, Format::V0_4, Compression::None)
}

/// Labels and pictures, of one, three and seven channels, in narrow and wide samples.
fn images(size: Size, levels: usize) -> Vec<StoredImage> {
    let both = [SampleType::U8, SampleType::U16];
    let kinds = both.map(|sample| {
        let pictures = [1, 3, 7].map(|channels| picture(size, levels, sample, channels));
        std::iter::once(image(size, levels, sample)).chain(pictures).collect::<Vec<_>>()
    });
    kinds.concat()
}

#[cfg(feature = "remote")]
fn in_objects(image: StoredImage) -> Subject {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static BUCKETS: AtomicUsize = AtomicUsize::new(0);
    let (folder, bucket) =
        (tempfile::tempdir().unwrap(), format!("contract-{}", BUCKETS.fetch_add(1, Ordering::Relaxed)));
    microtome_io::remote::in_memory(&bucket, folder.path());
    let path = format!("s3://{bucket}/masks/mask.ome.zarr");
    let sink = Arc::new(ZarrImage::create(&path, image).unwrap());
    let opened = path.clone();
    let read = move |level: Level| {
        // The folder lives as long as this.
        let _ = &folder;
        let store = OmeZarr::open(&opened).unwrap();
        store.read_region(level, store.info().levels[level.0].size.rect()).unwrap()
    };
    let attributes = move || OmeZarr::open(&path).unwrap().info().attributes.clone();
    Subject { sink, read: Box::new(read), attributes: Box::new(attributes) }
}

#[cfg(feature = "remote")]
fn in_objects_0_4(image: StoredImage) -> Subject {
    in_objects(StoredImage { encoding: Encoding { format: Format::V0_4, ..Encoding::default() }, ..image })
}

const SUBJECTS: &[fn(StoredImage) -> Subject] = &[
    memory,
    on_disk,
    shuffled,
    deflated,
    version_0_4,
    shuffled_0_4,
    plain_0_4,
    #[cfg(feature = "remote")]
    in_objects,
    #[cfg(feature = "remote")]
    in_objects_0_4,
];

#[test]
fn what_is_written_is_read_back() {
    // One pixel, one row, less than a chunk, exactly a shard, odd, several shards.
    let sizes = [(1, 1), (1, 77), (13, 7), (32, 24), (33, 25), (101, 50), (200, 131)];
    // Each chunk of the older version is a file: the largest picture would be thousands.
    let subjects = SUBJECTS
        .iter()
        .enumerate()
        .flat_map(|(n, make)| sizes[..if n < 4 { 7 } else { 6 }].iter().map(move |size| (make, *size)));
    for (make, (width, height)) in subjects {
        for image in images(Size::new(width, height), 3) {
            let levels: Vec<_> = (0..3).map(|n| content(&image, Level(n), width + n as u64 + 1)).collect();
            let sink = make(image);
            write_all(&*sink, &levels);
            sink.finish(&Map::new()).unwrap();
            for (n, whole) in levels.iter().enumerate() {
                assert!(sink.pixels(Level(n)) == *whole, "level {n} of {width} x {height} differs: {:?}", &*sink);
            }
        }
    }
}

#[test]
fn a_shard_that_was_never_written_is_background() {
    for make in SUBJECTS {
        let sink = make(image(Size::new(70, 30), 1, SampleType::U8));
        let shard = TileCoord { row: 1, column: 2 };
        let rect = sink.image().shard_rect(Level(0), shard).unwrap();
        sink.write_shard(Level(0), shard, &Pixels::filled(rect.size(), SampleType::U8, &[2])).unwrap();
        sink.finish(&Map::new()).unwrap();
        let mut expected = Pixels::filled(Size::new(70, 30), SampleType::U8, &[0]);
        expected.blit(Size::new(70, 30).rect(), &Pixels::filled(rect.size(), SampleType::U8, &[2]), rect);
        assert_eq!(sink.pixels(Level(0)), expected);
    }
}

#[test]
fn a_shard_is_given_back() {
    for (make, image) in
        SUBJECTS.iter().flat_map(|make| images(Size::new(70, 30), 1).into_iter().map(move |i| (make, i)))
    {
        let whole = content(&image, Level(0), 9);
        let sink = make(image.clone());
        write_all(&*sink, std::slice::from_ref(&whole));
        for finished in [false, true] {
            for shard in shards(sink.image(), Level(0)) {
                let rect = sink.image().shard_rect(Level(0), shard).unwrap();
                assert!(
                    sink.read_shard(Level(0), shard).unwrap() == cut(&whole, rect),
                    "{shard}, finished: {finished}"
                );
            }
            if !finished {
                sink.finish(&Map::new()).unwrap();
            }
        }
        let error = sink.read_shard(Level(1), TileCoord { row: 0, column: 0 }).unwrap_err();
        assert!(matches!(error, Error::Usage { .. }), "{error}");
        let empty = make(image);
        let background = empty.read_shard(Level(0), TileCoord { row: 1, column: 2 }).unwrap();
        assert_eq!(background, Pixels::filled(Size::new(6, 6), whole.sample_type(), &vec![0; whole.channels()]));
    }
}

#[test]
fn notes_stand_beside_the_attributes() {
    for make in SUBJECTS {
        let image = image(Size::new(40, 30), 1, SampleType::U8);
        let mut expected = image.attributes.clone();
        let sink = make(image);
        let error = sink.finish(&expected).unwrap_err();
        assert!(matches!(error, Error::Usage { .. }) && error.to_string().contains("fingerprint"), "{error}");
        // That it was refused uses nothing up.
        let notes = Map::from_iter([("unreadable-tiles".to_owned(), Value::from(3))]);
        sink.finish(&notes).unwrap();
        expected.extend(notes);
        assert_eq!((sink.attributes)(), expected);
    }
}

#[test]
fn a_shard_is_written_once() {
    for make in SUBJECTS {
        let sink = make(image(Size::new(40, 30), 1, SampleType::U8));
        let write = |row, column, label| {
            let shard = TileCoord { row, column };
            let size = sink.image().shard_rect(Level(0), shard).unwrap().size();
            sink.write_shard(Level(0), shard, &Pixels::filled(size, SampleType::U8, &[label]))
        };
        write(0, 0, 1).unwrap();
        write(0, 1, 0).unwrap();
        for column in [0, 1] {
            let error = write(0, column, 2).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }) && error.to_string().contains("written before"), "{error}");
        }
        sink.finish(&Map::new()).unwrap();
        assert!(write(1, 0, 1).unwrap_err().to_string().contains("finished"));
        assert!(sink.finish(&Map::new()).unwrap_err().to_string().contains("finished already"));
        assert_eq!(sink.pixels(Level(0)).as_u8().unwrap()[0], 1);
    }
}

#[test]
fn pixels_that_are_not_the_shards_are_refused() {
    for make in SUBJECTS {
        let sink = make(image(Size::new(40, 30), 1, SampleType::U8));
        let (whole, at) = (Size::new(32, 24), TileCoord { row: 0, column: 0 });
        let fill = |size, sample, channels: &[u16]| Pixels::filled(size, sample, channels);
        for (level, shard, labels) in [
            (0, at, fill(Size::new(31, 24), SampleType::U8, &[1])),
            (0, at, fill(whole, SampleType::U16, &[1])),
            (0, at, fill(whole, SampleType::U8, &[1, 1])),
            (1, at, fill(whole, SampleType::U8, &[1])),
            (0, TileCoord { row: 2, column: 0 }, fill(whole, SampleType::U8, &[1])),
            (0, TileCoord { row: 0, column: 1 }, fill(whole, SampleType::U8, &[1])),
        ] {
            let error = sink.write_shard(Level(level), shard, &labels).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }), "{error}");
        }
        // A refusal uses nothing up.
        sink.write_shard(Level(0), at, &fill(whole, SampleType::U8, &[1])).unwrap();
        // A picture takes as many channels as it has.
        let sink = make(picture(Size::new(40, 30), 1, SampleType::U8, 2));
        for channels in [1, 3] {
            let error = sink.write_shard(Level(0), at, &fill(whole, SampleType::U8, &vec![1; channels])).unwrap_err();
            assert!(matches!(error, Error::Usage { .. }), "{error}");
        }
        sink.write_shard(Level(0), at, &fill(whole, SampleType::U8, &[1, 0])).unwrap();
    }
}

#[test]
fn many_threads_write_different_shards_and_one_wins_the_same() {
    for make in SUBJECTS {
        let image = picture(Size::new(500, 300), 1, SampleType::U8, 2);
        let whole = content(&image, Level(0), 7);
        let sink = make(image);
        let wins = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (sink, whole, wins) = (&*sink, &whole, &wins);
                scope.spawn(move || {
                    let mut mine = shards(sink.image(), Level(0));
                    mine.rotate_left(thread * 31);
                    for shard in mine {
                        let rect = sink.image().shard_rect(Level(0), shard).unwrap();
                        if sink.write_shard(Level(0), shard, &cut(whole, rect)).is_ok() {
                            wins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(wins.into_inner(), shards(sink.image(), Level(0)).len());
        sink.finish(&Map::new()).unwrap();
        assert!(sink.pixels(Level(0)) == whole);
    }
}
