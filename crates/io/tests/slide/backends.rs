//! Who reads a slide: our readers or OpenSlide. With the feature `openslide`, both read the same slides and must see the same.

use std::path::Path;

use microtome_io::Error;
use microtome_io::slide::{Backend, OpenOptions, SlideReader, open, open_bytes};

fn by(path: impl AsRef<Path>, backend: Backend) -> Result<Box<dyn SlideReader>, Error> {
    open(path, &OpenOptions::default().backend(backend))
}

/// Formats that OpenSlide alone reads, by the name of a file and its first bytes.
const FOREIGN: &[(&str, &[u8], &str)] = &[
    ("slide.mrxs", b"\xff\xd8\xff\xe0 and so on", "3DHISTECH MIRAX"),
    ("slide.VMS", b"[Virtual", "Hamamatsu VMS"),
    ("slide.vmu", b"[Uncompressed", "Hamamatsu VMU"),
    ("slide.svslide", b"SQLite format 3\0", "Sakura SVSLIDE"),
    ("slide.czi", b"ZISRAWFILE", "Zeiss CZI"),
    ("unnamed", b"ZISRAWFILE\0\0\0\0\0\0 and so on", "Zeiss CZI"),
];

#[test]
fn what_only_openslide_reads_is_refused_in_a_sentence_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, format) in FOREIGN {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = by(&path, Backend::Auto).unwrap_err();
        let line = error.to_string();
        assert!(matches!(error, Error::Unsupported { .. }) && line.contains(format), "{line}");
        assert!(line.contains("only OpenSlide can read") && !line.contains('\n'), "{line}");
        assert_eq!(line.contains("--features openslide"), cfg!(not(feature = "openslide")), "{line}");
        // Ours alone have nothing to say of OpenSlide.
        assert!(!by(&path, Backend::Native).unwrap_err().to_string().contains("OpenSlide"));
    }
}

#[test]
fn openslide_reads_no_bytes_that_are_no_file() {
    let source = std::sync::Arc::new(microtome_io::bytes::Memory::new("x.svs", vec![0; 100]));
    let error = open_bytes(source, &OpenOptions::default().backend(Backend::OpenSlide)).unwrap_err();
    assert!(matches!(error, Error::Usage { .. }), "{error}");
}

#[cfg(not(feature = "openslide"))]
#[test]
fn without_the_feature_openslide_cannot_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slide.svs");
    std::fs::write(&path, "anything").unwrap();
    let line = by(&path, Backend::OpenSlide).unwrap_err().to_string();
    assert!(line.contains("built without OpenSlide") && line.contains("--features openslide"), "{line}");
}

#[cfg(feature = "openslide")]
mod both {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::process::Command;

    use jpeg_encoder::{ColorType, Encoder};
    use microtome_io::slide::{LevelInfo, Limits};
    use microtome_io::{Level, Pixels, Rect, Size, TileCoord};
    use microtome_testkit::assets;
    use microtome_testkit::tiff::{Compression, Cut, TiffSlide};

    use super::*;

    /// Regions on each level.
    const REGIONS: u64 = 1000;

    fn read(slide: &dyn SlideReader, level: Level, rect: Rect) -> Pixels {
        slide.read_region(level, rect).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A fixed sequence.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Compares all that both readers say, and [`REGIONS`] regions of each level, some of which stick out. JPEG decodes bit for bit as in OpenSlide,
    /// so that no sample may differ.
    #[track_caller]
    fn agree(path: &Path) {
        let ours = by(path, Backend::Native).unwrap_or_else(|error| panic!("{error}"));
        let theirs = by(path, Backend::OpenSlide).unwrap_or_else(|error| panic!("{error}"));
        let (a, b) = (ours.info(), theirs.info());
        let sizes = |slide: &dyn SlideReader| slide.info().levels.iter().map(|l| l.size).collect::<Vec<_>>();
        assert_eq!(sizes(&*ours), sizes(&*theirs));
        let mpp = |slide: &dyn SlideReader| slide.info().resolution.as_ref().map(|r| (r.mpp.x, r.mpp.y));
        match (mpp(&*ours), mpp(&*theirs)) {
            (Some(ours), Some(theirs)) => {
                let off = |a: f64, b: f64| (a / b - 1.0).abs();
                assert!(off(ours.0, theirs.0) < 1e-9 && off(ours.1, theirs.1) < 1e-9, "{ours:?} and {theirs:?}");
            }
            (ours, theirs) => assert_eq!(ours, theirs),
        }
        assert_eq!(a.objective_power, b.objective_power);
        assert_eq!((a.background.clone(), a.bounds), (b.background.clone(), b.bounds));
        assert_eq!(ours.icc_profile(), theirs.icc_profile());
        let vendors = |slide: &dyn SlideReader| -> BTreeMap<String, String> {
            let all = slide.info().properties.clone().into_iter();
            // OpenSlide names TIFF's default unit of lengths also where there is no length.
            let nothing = ("tiff.ResolutionUnit", "inch");
            all.filter(|(name, _)| !name.starts_with("openslide.") && !name.starts_with("microtome."))
                .filter(|(name, value)| (name.as_str(), value.as_str()) != nothing)
                .collect()
        };
        let (ours_say, theirs_say) = (vendors(&*ours), vendors(&*theirs));
        assert!(ours_say.keys().eq(theirs_say.keys()), "{:?} and {:?}", ours_say.keys(), theirs_say.keys());
        for (name, value) in &ours_say {
            // The same number may be written with more digits or fewer.
            let number = |text: &str| text.parse::<f64>().ok();
            let same = number(value).is_some() && number(value) == number(&theirs_say[name]);
            assert!(same || *value == theirs_say[name], "{name}: {value:?} and {:?}", theirs_say[name]);
        }
        let names = |slide: &dyn SlideReader| {
            slide.info().associated.iter().map(|a| (a.name.clone(), a.size)).collect::<BTreeMap<_, _>>()
        };
        // Of an NDPI we also read the map of its focus.
        let shared: BTreeMap<_, _> = names(&*ours).into_iter().filter(|(name, _)| name != "map").collect();
        assert_eq!(shared, names(&*theirs));

        let mut random = Random(7);
        let (mut largest, mut worst, mut samples) = (0, String::new(), 0_u64);
        let mut compare = |ours: &Pixels, theirs: &Pixels, what: &dyn Fn() -> String| {
            assert_eq!((ours.size(), ours.channels()), (theirs.size(), theirs.channels()));
            for (ours, theirs) in ours.as_u8().unwrap().iter().zip(theirs.as_u8().unwrap()) {
                let difference = ours.abs_diff(*theirs);
                if difference > largest {
                    (largest, worst) = (difference, what());
                }
                samples += 1;
            }
        };
        // What is made of a finer level is compared elsewhere; where a downsample is no whole number, OpenSlide's pixels lie between ours.
        let whole = |level: &LevelInfo| level.downsample.x.fract() == 0.0 && level.downsample.y.fract() == 0.0;
        for (number, level) in a.levels.iter().enumerate().filter(|(_, level)| level.stored && whole(level)) {
            for _ in 0..REGIONS {
                let size = Size::new(1 + random.below(120), 1 + random.below(120));
                let mut corner = |side: u64, length: u64| random.below(side + 2 * length) as i64 - length as i64;
                let (x, y) = (corner(level.size.width, size.width / 3), corner(level.size.height, size.height / 3));
                let (level, rect) = (Level(number), Rect::new(x, y, size.width, size.height));
                compare(&read(&*ours, level, rect), &read(&*theirs, level, rect), &|| format!("level {level}, {rect}"));
            }
        }
        for name in shared.keys() {
            let read = |slide: &dyn SlideReader| slide.read_associated(name).unwrap_or_else(|error| panic!("{error}"));
            compare(&read(&*ours), &read(&*theirs), &|| name.clone());
        }
        eprintln!("{}: {samples} samples, at most {largest} apart", path.display());
        assert!(samples > 0 && largest == 0, "{largest} at {worst}");
    }

    #[test]
    fn real_slides_are_the_same_for_both() {
        for name in ["default.svs", "boxes.tiff", "small.svs"] {
            let Some(path) = assets::openslide_asset(name) else { return };
            agree(&path);
        }
    }

    #[test]
    fn real_slides_of_the_data_folder_are_the_same_for_both() {
        for name in ["slides/ndpi/test3-DAPI-2-387.ndpi", "slides/dicom/cmu-1-small-region"] {
            let Some(path) = microtome_testkit::data(name) else { return };
            let path = if path.is_dir() {
                let mut files: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
                files.sort();
                files.into_iter().find(|path| path.extension().is_some_and(|e| e == "dcm")).unwrap()
            } else {
                path
            };
            agree(&path);
        }
    }

    fn value(level: usize, x: u64, y: u64, channel: usize) -> u16 {
        // Smooth, as tissue is: JPEG makes something of it that decoders agree on.
        let wave = (x as f64 / 9.0).sin() + (y as f64 / 7.0 + channel as f64).cos();
        (128.0 + 50.0 * wave) as u16 + level as u16 * 5
    }

    fn written(folder: &Path, name: &str, change: impl FnOnce(&mut TiffSlide)) -> PathBuf {
        let mut slide = TiffSlide::rgb(&[(640, 480), (320, 240), (160, 120)], value);
        change(&mut slide);
        let path = folder.join(name);
        std::fs::write(&path, slide.bytes()).unwrap();
        path
    }

    #[test]
    fn written_slides_are_the_same_for_both() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, change: &dyn Fn(&mut TiffSlide)| written(folder.path(), name, change);
        agree(&write("raw.tif", &|_| ()));
        agree(&write("deflate.tif", &|slide| {
            slide.compression = Compression::Deflate;
            slide.predictor = 2;
            slide.cut = Cut::Tiles(128, 96);
            slide.resolution = Some((20_000.0, 40_000.0, 3));
        }));
        agree(&write("rgb.tif", &|slide| {
            slide.compression = Compression::Jpeg(85);
            slide.cut = Cut::Tiles(256, 256);
        }));
        agree(&write("ycbcr.tif", &|slide| {
            slide.compression = Compression::Jpeg(85);
            slide.photometric = 6;
        }));
        agree(&write("described.svs", &|slide| {
            slide.compression = Compression::Jpeg(90);
            slide.description = Some("Aperio Leica Biosystems GT450 v1.0.1\r\n640x480|AppMag = 40|MPP = 0.2627".into());
        }));
    }

    #[test]
    fn an_aperio_pyramid_with_subsampled_chroma_is_the_same_for_both() {
        let (Some(source), Some(python)) = (assets::cmu_small_region(), std::env::var_os("MICROTOME_PYTHON")) else {
            return microtome_testkit::skip("MICROTOME_PYTHON names no interpreter; `cargo xtask test` makes one");
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.svs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/big_slide.py");
        let mut command = Command::new(python);
        let status = command.arg(script).arg(&path).arg(source).args(["8192x6144", "--distinct"]).status().unwrap();
        assert!(status.success());
        agree(&path);
    }

    /// The first tile of level 0 starts right behind the header of 8 bytes.
    fn spoilt(folder: &Path) -> PathBuf {
        let path = written(folder, "spoilt.tif", |slide| slide.compression = Compression::Jpeg(85));
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(&bytes[8..10], b"\xff\xd8");
        bytes[8..40].fill(0);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_bad_tile_is_named_and_the_others_stay_readable() {
        let folder = tempfile::tempdir().unwrap();
        let path = spoilt(folder.path());
        let whole = written(folder.path(), "whole.tif", |slide| slide.compression = Compression::Jpeg(85));
        let reference = by(whole, Backend::OpenSlide).unwrap();
        for cache_bytes in [0, 64 << 20] {
            let slide =
                open(&path, &OpenOptions::default().backend(Backend::OpenSlide).cache_bytes(cache_bytes)).unwrap();
            let bad = || slide.read_region(Level(0), Rect::new(10, 10, 100, 20)).unwrap_err();
            let good = |x: i64, y: i64| {
                let rect = Rect::new(x, y, 90, 80);
                assert_eq!(read(&*slide, Level(0), rect), read(&*reference, Level(0), rect), "{rect}");
            };
            good(200, 100);
            for _ in 0..3 {
                let error = bad();
                let first = TileCoord { row: 0, column: 0 };
                assert!(matches!(error, Error::Tile { level: Level(0), tile, .. } if tile == first), "{error}");
                assert!(error.to_string().contains("spoilt.tif: level 0, column 0 row 0: OpenSlide: "), "{error}");
                good(200, 100);
                read(&*slide, Level(1), Rect::new(0, 0, 50, 50));
            }
            std::thread::scope(|scope| {
                for thread in 0..6 {
                    let (bad, good) = (&bad, &good);
                    scope.spawn(move || {
                        for i in 0..20 {
                            if (thread + i) % 3 == 0 {
                                assert!(matches!(bad(), Error::Tile { .. }));
                            } else {
                                good(64 + 20 * i, 60 * thread);
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn openslides_slides_keep_to_the_limits() {
        let Some(path) = assets::openslide_asset("boxes.tiff") else { return };
        let refused = |change: &dyn Fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            let options = OpenOptions::default().backend(Backend::OpenSlide).limits(limits);
            open(&path, &options).and_then(|slide| slide.read_region(Level(0), Rect::new(0, 0, 300, 200))).unwrap_err()
        };
        for error in [
            refused(&|limits| limits.directories = 3),
            refused(&|limits| limits.table_bytes = 100),
            refused(&|limits| limits.decoded_bytes = 1000),
            refused(&|limits| limits.decoded_bytes = 100_000),
        ] {
            assert!(matches!(error, Error::Limits { .. }), "{error}");
        }
    }

    #[test]
    fn openslides_refusals_are_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.svs");
        std::fs::write(&path, "anything").unwrap();
        let error = by(&path, Backend::OpenSlide).unwrap_err();
        assert!(
            matches!(error, Error::Unsupported { .. }) && error.to_string().contains("no format that OpenSlide knows")
        );
        // Nobody reads it: ours say so.
        assert!(by(&path, Backend::Auto).unwrap_err().to_string().contains("in no format that microtome knows"));
        assert!(matches!(by(folder.path().join("missing.svs"), Backend::OpenSlide), Err(Error::Io { .. })));
        // OpenSlide would show a turned picture as it lies: it stays refused.
        let turned = written(folder.path(), "turned.tif", |slide| slide.fields = vec![(274, vec![3])]);
        assert!(by(&turned, Backend::OpenSlide).is_ok());
        let error = by(&turned, Backend::Auto).unwrap_err().to_string();
        assert!(error.contains("Orientation 3"), "{error}");
    }

    /// A JPEG with restart markers, which OpenSlide asks of the pictures of a VMS file.
    fn jpeg(path: &Path, size: (u16, u16), pixel: impl Fn(u64, u64, usize) -> u8) {
        let (width, height) = (u64::from(size.0), u64::from(size.1));
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let samples: Vec<u8> = places.flat_map(|(x, y)| [0, 1, 2].map(|channel| pixel(x, y, channel))).collect();
        let mut encoder = Encoder::new_file(path, 95).unwrap();
        encoder.set_restart_interval(4);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
        encoder.encode(&samples, size.0, size.1, ColorType::Rgb).unwrap();
    }

    #[test]
    fn a_hamamatsu_vms_is_read_by_openslide() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        jpeg(&file("image.jpg"), (640, 320), |x, y, channel| value(0, x, y, channel) as u8);
        jpeg(&file("map.jpg"), (160, 80), |x, y, channel| value(0, 4 * x, 4 * y, channel) as u8);
        jpeg(&file("macro.jpg"), (64, 32), |_, _, channel| [200, 100, 50][channel]);
        let index = "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=image.jpg\n\
                     MapFile=map.jpg\nMacroImage=macro.jpg\nPhysicalWidth=320000\nPhysicalHeight=160000\nSourceLens=20\n";
        std::fs::write(file("slide.vms"), index).unwrap();

        let slide = by(file("slide.vms"), Backend::Auto).unwrap_or_else(|error| panic!("{error}"));
        let info = slide.info();
        assert_eq!((info.format.as_str(), info.size()), ("hamamatsu", Size::new(640, 320)));
        assert_eq!(info.resolution.as_ref().map(|r| (r.mpp.x, r.mpp.y)), Some((0.5, 0.5)));
        assert_eq!(info.resolution.as_ref().unwrap().source.to_string(), "openslide.mpp-x");
        assert_eq!(info.objective_power, Some(20.0));
        assert!(info.properties["microtome.read-by"].starts_with("OpenSlide 4"), "{:?}", info.properties);
        assert_eq!(info.associated[0].name, "macro");
        let rect = Rect::new(100, 50, 300, 200);
        let pixels = read(&*slide, Level(0), rect);
        for (index, &sample) in pixels.as_u8().unwrap().iter().enumerate() {
            let (pixel, channel) = (index as u64 / 3, index % 3);
            let expected = value(0, 100 + pixel % 300, 50 + pixel / 300, channel) as u8;
            assert!(sample.abs_diff(expected) <= 16, "{pixel}, {channel}: {sample} for {expected}");
        }
        // Overlapping regions agree, and what sticks out is background.
        let small = Rect::new(150, 90, 33, 44);
        let mut cut = read(&*slide, Level(0), small);
        cut.blit(small, &pixels, rect);
        assert_eq!(cut, read(&*slide, Level(0), small));
        assert_eq!(read(&*slide, Level(0), Rect::new(-3, -2, 3, 2)).as_u8(), Some(&[255; 18][..]));
        let picture = slide.read_associated("macro").unwrap();
        assert!(picture.as_u8().unwrap().iter().zip([200, 100, 50].iter().cycle()).all(|(a, b)| a.abs_diff(*b) < 4));

        // The content counts, not only the index.
        let before = slide.content_id().unwrap();
        jpeg(&file("map.jpg"), (160, 80), |x, y, channel| value(1, 4 * x, 4 * y, channel) as u8);
        assert_ne!(by(file("slide.vms"), Backend::Auto).unwrap().content_id().unwrap(), before);
    }
}
