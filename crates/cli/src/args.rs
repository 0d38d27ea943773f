//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use microtome::io::Rect;
use microtome::io::bytes::ByteAccess;
use microtome::io::remote::is_remote;
use microtome::io::slide::{self, Colors, Limits, OpenOptions, SlideReader};
use microtome::io::store::{Compression, Format};
use microtome::{Bytes, Levels, TargetResolution};

#[derive(Debug, Parser)]
#[command(
    name = "microtome",
    version,
    about = "Segments gigapixel pathology slides in constant memory",
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a model over slides and write the masks as OME-Zarr
    #[command(args_override_self = true)]
    Segment(Box<Segment>),
    /// Run a model over the slides of a manifest: an archive, by one process or by many
    #[command(args_override_self = true)]
    Batch(Box<Batch>),
    /// List the slides of a tree of folders as a manifest for `batch`
    Manifest(Manifest),
    /// Put the reports of a batch together, whichever of its processes wrote them
    Report(Report),
    /// Look at the slides of a manifest before a model runs over them: resolutions, unreadable tiles, duplicates, hours
    #[command(args_override_self = true)]
    Audit(Box<Audit>),
    /// Turn a slide into an OME-Zarr image with every level
    #[command(args_override_self = true)]
    Convert(Box<Convert>),
    /// Make a small picture of a slide or mask, or a DeepZoom image
    Preview(Box<Preview>),
    /// Say what is known of a slide or store without decoding it
    Info(Info),
    /// Decode every tile of a slide, or every chunk of a store, and name those that are bad
    Validate(Validate),
    /// Write a rectangle of a slide, or a picture that travels with it, to a PNG
    Read(Read),
    /// Compare every shard of a mask with the digests in the journal of its run
    Verify(Verify),
    /// Apply to a finished mask what a model's authors found to improve it, or what you ask for
    Postprocess(Postprocess),
    /// Inspect and import models
    #[command(subcommand)]
    Model(ModelCommand),
}

/// How slides are opened.
#[derive(Debug, Args)]
pub(crate) struct Opening {
    /// Read slides instead of mapping them: for network mounts that may vanish, and files that another program may shorten
    #[arg(long)]
    pub(crate) no_mmap: bool,

    /// ignore: colours as they are stored; srgb: converted by the slide's ICC profile, if it has one
    #[arg(long, value_enum, value_name = "ignore|srgb", default_value_t = Icc::Ignore)]
    pub(crate) icc: Icc,

    /// Whose code reads slides. auto: OpenSlide's where ours cannot, if this program was built with the feature `openslide`
    #[arg(long, value_enum, value_name = "auto|native|openslide", default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,

    /// The most bytes to decode in one piece: a tile, or the whole of a plain picture
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    pub(crate) decode_limit: Bytes,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Backend {
    Auto,
    Native,
    Openslide,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Icc {
    Ignore,
    Srgb,
}

#[derive(Debug, Args)]
pub(crate) struct Segment {
    /// Slides, in any format that README lists
    #[arg(required = true, value_name = "SLIDE")]
    pub(crate) slides: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// Where the mask goes, which may be s3://BUCKET/NAME; with several slides, the folder for NAME.ome.zarr of each
    #[arg(short, long, value_name = "OUT", required_unless_present = "into")]
    pub(crate) output: Option<PathBuf>,

    /// An OME-Zarr image of the slide, or the slide itself: the mask becomes labels/NAME of it, in the image's version and with as many
    /// levels, and everything else in it stays
    #[arg(long, value_name = "IMAGE.ome.zarr", conflicts_with = "output")]
    pub(crate) into: Option<PathBuf>,

    /// What the labels are called in the image [default: the model's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    #[command(flatten)]
    pub(crate) running: Running,

    /// Run in this region only, in place of the tissue: a PNG mask, an OME-Zarr label image, or GeoJSON
    #[arg(long, value_name = "FILE", conflicts_with = "tissue")]
    pub(crate) roi: Option<PathBuf>,

    /// Which of its values are wanted: numbers, names of classes, or `any`
    #[arg(long, value_name = "VALUE,..", value_delimiter = ',', requires = "roi")]
    pub(crate) roi_value: Vec<String>,

    /// Compute one of N parts of the slide, counted from 0, into the same output as those who compute the others, at the same time or
    /// not, here or on other machines
    #[arg(long, value_name = "I/N", conflicts_with_all = ["finish", "overwrite", "no_resume", "dry_run"])]
    pub(crate) part: Option<microtome::Part>,

    /// Build what is left of the mask once all parts are computed, and publish it
    #[arg(long, conflicts_with_all = ["overwrite", "no_resume", "dry_run"])]
    pub(crate) finish: bool,

    /// Print where the network's time went, layer by layer
    #[arg(long)]
    pub(crate) profile: bool,
}

/// How models run, over one slide or over many.
#[derive(Debug, Args)]
pub(crate) struct Running {
    /// The model: an nnU-Net v2 result folder or a microtome package. Given several times, the models run together, each with
    /// its own tiles and folds, and the mean of their probabilities decides
    #[arg(short, long = "model", value_name = "MODEL", required = true)]
    pub(crate) models: Vec<PathBuf>,

    /// Version of OME-Zarr that is written: 0.5 (shards) or 0.4 (one file for each chunk) [default: 0.5, or that of the image]
    #[arg(long, value_name = "0.5|0.4")]
    pub(crate) format: Option<microtome::io::store::Format>,

    /// Micrometres per level-0 pixel, in place of what the slide says
    #[arg(long, value_name = "UM")]
    pub(crate) mpp: Option<f64>,

    /// Where a slide has no other resolution, take 10 micrometres divided by the magnification of its objective. Often inaccurate
    #[arg(long, conflicts_with = "mpp")]
    pub(crate) mpp_from_objective: bool,

    /// Micrometres per pixel that the model works at, or `native`: level 0 as it is
    #[arg(long, value_name = "UM|native", value_parser = resolution)]
    pub(crate) model_mpp: Option<TargetResolution>,

    /// Take a level as it is if its resolution is off by no more than this fraction
    #[arg(long, value_name = "FRACTION", default_value_t = 0.02)]
    pub(crate) mpp_tolerance: f64,

    /// How many times pixels may be enlarged where the slide is coarser than the model
    #[arg(long, value_name = "FACTOR", default_value_t = 1.25)]
    pub(crate) max_enlargement: f64,

    /// Distance between tiles as a fraction of a tile [default: the model's, 0.5 for nnU-Net]
    #[arg(long, value_name = "FRACTION", alias = "step_size")]
    pub(crate) step_size: Option<f64>,

    /// How much each pixel of a tile counts where tiles overlap [default: the model's, gaussian for nnU-Net]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) window: Option<Window>,

    /// Numbers in which logits are summed; f16-nnunet rounds as nnU-Net does, for comparison
    #[arg(long, value_enum, default_value_t = Accumulate::F32)]
    pub(crate) accumulate: Accumulate,

    /// Average over mirrored tiles, along the axes the model was trained with (the default)
    #[arg(long, overrides_with = "no_tta")]
    pub(crate) tta: bool,

    /// No mirroring: up to four times faster
    #[arg(long, alias = "disable_tta", overrides_with = "tta")]
    pub(crate) no_tta: bool,

    #[command(flatten)]
    pub(crate) weights: Weights,

    /// Arithmetic of the network: bf16 needs a GPU or a CPU with AVX512_BF16 to be fast, f16 needs a GPU
    /// [default: what the model recommends where the device is fast in it, else bf16 on GPUs that have it, else f32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,

    /// Convolutions as sums of products in f32, for comparison with nnU-Net; slower on the CPU
    #[arg(long)]
    pub(crate) exact: bool,

    /// auto, cpu, cuda, or cuda:0,1 for several GPUs
    #[arg(long, default_value = "auto")]
    pub(crate) device: microtome::unet::Device,

    /// Memory to stay within, such as 512MiB or 4GiB [default: half of what the control group or the machine allows]
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory: Option<Bytes>,

    /// Tiles per call of the network
    /// [default: one per thread and at least 4, or 16 small ones, if they fit into the memory; on a GPU what fits its own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) batch: Option<usize>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// Work that a crash may cost at most, besides what is in flight
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) sync_every: std::time::Duration,

    /// Cut off black borders before anything else, as nnU-Net does: the statistics and the tiles are those of what is left, and the
    /// rest is background. auto: if the model was trained so
    #[arg(long, value_enum, value_name = "auto|on|off", default_value_t = CropNonzero::Auto)]
    pub(crate) crop_nonzero: CropNonzero,

    /// auto: only tiles that touch tissue; none: every tile
    #[arg(long, value_enum, default_value_t = Tissue::Auto)]
    pub(crate) tissue: Tissue,

    /// Whose mean, deviation and extremes the image is normalised with: slide, glass included; tissue: of the region that runs; plans:
    /// of the model's training set; or a JSON file of them
    #[arg(long, value_name = "slide|tissue|plans|FILE", default_value = "slide")]
    pub(crate) norm_stats: PathBuf,

    /// Write the probability of each class or region, too: 8 bits, beside OUT into NAME.probabilities.ome.zarr
    #[arg(long)]
    pub(crate) probabilities: bool,

    /// Write how far the most probable class is ahead, too: 8 bits, beside OUT into NAME.confidence.ome.zarr
    #[arg(long)]
    pub(crate) confidence: bool,

    /// A tile of the slide that cannot be read: fail, or fill the mask with background there, list it and exit 3
    #[arg(long, value_enum, default_value_t = OnBadTile::Fail)]
    pub(crate) on_bad_tile: OnBadTile,

    /// A folder on a fast disk: tiles between strips are kept there in place of running twice
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,

    /// Replace a mask of ours that is there already, finished or not
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Begin anew where the same run did not finish
    #[arg(long)]
    pub(crate) no_resume: bool,

    /// Say what the run would do and take (tiles, memory, disk, time), and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// No progress, no summary
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Summaries as JSON on standard output, one line per slide
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Batch {
    /// The slides: .csv, .tsv or .jsonl with the columns slide and id, and if need be mpp, roi, roi_value, level, group, out
    #[arg(value_name = "MANIFEST")]
    pub(crate) manifest: PathBuf,

    /// The folder below which each slide gets a folder of its own, called by its id
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,

    /// Work at this share of the slides only, from 0 on: 0/4, 1/4, 2/4, 3/4; auto: the one that Slurm or Kubernetes says
    #[arg(long, value_name = "I/N|auto")]
    pub(crate) shard: Option<String>,

    /// Slides at once, which share --memory and --threads
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) jobs: usize,

    /// A folder on a local disk: slides are copied there before they are read. Without it those of s3:// are read where they are
    #[arg(long, value_name = "DIR")]
    pub(crate) stage: Option<PathBuf>,

    /// Bytes that such copies may take at once [default: as many as the disk has]
    #[arg(long, value_name = "BYTES", requires = "stage")]
    pub(crate) stage_limit: Option<Bytes>,

    /// Keep in reports and tables what can name a person: paths of slides, texts of scanners, pictures of labels
    #[arg(long)]
    pub(crate) identify: bool,

    /// Seconds without a sign of life after which another process's slide is taken over
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = patience, allow_negative_numbers = true)]
    pub(crate) lease_expiry: std::time::Duration,

    /// Which values of regions are wanted where the manifest does not say: numbers, names of classes, or `any`
    #[arg(long, value_name = "VALUE,..", value_delimiter = ',')]
    pub(crate) roi_value: Vec<String>,

    #[command(flatten)]
    pub(crate) opening: Opening,

    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct Manifest {
    /// The folder to look in, with all folders below it
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    /// The manifest: a file that does not exist yet and ends in .csv, .tsv or .jsonl [default: CSV on standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Take PNG, JPEG and WebP pictures for slides, too
    #[arg(long)]
    pub(crate) pictures: bool,

    /// Call slides by numbers in place of the names of their files, which can be names of patients
    #[arg(long)]
    pub(crate) numbers: bool,

    /// Replace a manifest that is there already
    #[arg(long)]
    pub(crate) overwrite: bool,

    #[command(flatten)]
    pub(crate) opening: Opening,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The folder of a batch
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    /// Keep what can name a person, where the batch was run with --identify
    #[arg(long)]
    pub(crate) identify: bool,

    /// Say what was put together as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// The slides, as `batch` takes them
    #[arg(value_name = "MANIFEST")]
    pub(crate) manifest: PathBuf,

    /// Stored tiles to decode of each slide, spread evenly, or all
    #[arg(long, value_name = "N|all", default_value = "64", value_parser = sample)]
    pub(crate) sample: Sample,

    /// A model, or several that run together: hours are those of their tiles, as a batch of them is measured, run as they recommend
    #[arg(id = "model", short, long = "model", value_name = "MODEL", action = clap::ArgAction::Append)]
    pub(crate) models: Vec<PathBuf>,

    /// Reckon hours by so many megapixels of level 0 per second
    #[arg(long, value_name = "MPX/S", value_parser = positive, conflicts_with = "model")]
    pub(crate) speed: Option<f64>,

    /// Micrometres per pixel that the model works at, or `native`: level 0 as it is
    #[arg(long, value_name = "UM|native", value_parser = resolution, requires = "model")]
    pub(crate) model_mpp: Option<TargetResolution>,

    /// Where the model runs: auto, cpu, cuda, or cuda:0,1 for several GPUs
    #[arg(long, default_value = "auto", requires = "model")]
    pub(crate) device: microtome::unet::Device,

    /// Write the audit as CSV, too
    #[arg(short, long, value_name = "FILE.csv")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How many tiles are decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample(pub(crate) Option<u64>);

fn sample(text: &str) -> Result<Sample, String> {
    match text.parse() {
        _ if text == "all" => Ok(Sample(None)),
        Ok(count) => Ok(Sample(Some(count))),
        Err(_) => Err("a number of tiles, or `all`".into()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Weights {
    /// Folds to average, such as 0,1,2, or `all` for fold_all [default: all numbered folds, else fold_all]
    #[arg(short, long, value_name = "FOLDS", value_parser = folds)]
    pub(crate) folds: Option<microtome::unet::Folds>,

    /// Which checkpoint of an nnU-Net result
    #[arg(long, value_enum, default_value_t = Checkpoint::Final)]
    pub(crate) checkpoint: Checkpoint,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Checkpoint {
    Final,
    Best,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Precision {
    F32,
    Bf16,
    F16,
}

impl From<Precision> for microtome::unet::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::F16 => Self::F16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum WeightFormat {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CropNonzero {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Window {
    /// nnU-Net's Gaussian
    Gaussian,
    /// MONAI's Gaussian
    GaussianMonai,
    /// 1 everywhere
    Constant,
    /// A cosine bell
    Hann,
    /// A pyramid
    Linear,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Accumulate {
    F32,
    F16Nnunet,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnBadTile {
    Fail,
    Fill,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Tissue {
    Auto,
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The slide, in any format that README lists
    #[arg(value_name = "SLIDE")]
    pub(crate) source: PathBuf,

    /// The image: a folder, one file if its name ends in .zip or .ozx, or s3://BUCKET/NAME in an object store
    #[arg(value_name = "OUT.ome.zarr|OUT.ome.zarr.zip")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// Version of OME-Zarr: 0.5 (shards) or 0.4 (one file for each chunk)
    #[arg(long, value_name = "0.5|0.4", default_value_t)]
    pub(crate) format: Format,

    /// How chunks are compressed, without loss
    #[arg(long, value_name = "zstd[:N]|blosc[:N]|gzip[:N]|none", default_value_t)]
    pub(crate) compression: Compression,

    /// Side of a chunk in pixels: the smallest piece that a reader decodes
    #[arg(long, value_name = "PIXELS", default_value_t = 512, allow_negative_numbers = true)]
    pub(crate) chunk: u64,

    /// Side of a shard in pixels, an even multiple of the chunk: what one file of version 0.5 holds, and what is converted at once
    /// [default: the least such multiple from 1024 on]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub(crate) shard: Option<u64>,

    /// What becomes of 2 x 2 pixels on the next level: their mean, the most frequent, the top left, the largest
    /// [default: mean, or mode of labels]
    #[arg(long, value_enum)]
    pub(crate) reduction: Option<Reduction>,

    /// So many levels, or `source`: where the slide stores a level of the same ratio and size, it is copied
    /// [default: until the longer side is no more than a chunk]
    #[arg(long, value_name = "N|source", value_parser = levels)]
    pub(crate) levels: Option<Levels>,

    /// The slide's level that becomes the finest one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) level: usize,

    /// Convert this rectangle only: left, top, width and height in pixels of the level
    #[arg(long, value_name = "X,Y,W,H", value_parser = rectangle, allow_hyphen_values = true)]
    pub(crate) rect: Option<Rect>,

    /// Micrometres per level-0 pixel, in place of what the slide says
    #[arg(long, value_name = "UM")]
    pub(crate) mpp: Option<f64>,

    /// Keep the picture of the slide's label, too: it can carry a patient's name
    #[arg(long)]
    pub(crate) label_image: bool,

    /// Leave out the pictures that travel with the slide. An overview of the glass (macro) can show its label
    #[arg(long, conflicts_with = "label_image")]
    pub(crate) no_associated: bool,

    /// A picture that travels with the slide and cannot be read: fail, or leave it out with a note
    #[arg(long, value_enum, value_name = "fail|skip", default_value_t = OnBadPicture::Fail)]
    pub(crate) on_bad_picture: OnBadPicture,

    /// Name of the image within its metadata. Not that of the slide's file, which can be a patient's
    #[arg(long, default_value = "image")]
    pub(crate) name: String,

    /// Memory to stay within, such as 512MiB or 4GiB [default: half of what the control group or the machine allows]
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory: Option<Bytes>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// Work that a crash may cost at most, besides what is in flight
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) sync_every: std::time::Duration,

    /// Replace an image of ours that is there already, finished or not
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Begin anew where the same conversion did not finish
    #[arg(long)]
    pub(crate) no_resume: bool,

    /// No progress, no summary
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// The summary as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnBadPicture {
    Fail,
    Skip,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Reduction {
    Mean,
    Mode,
    Nearest,
    Max,
}

impl From<Reduction> for microtome::Reduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::Mean => Self::Mean,
            Reduction::Mode => Self::Mode,
            Reduction::Nearest => Self::Nearest,
            Reduction::Max => Self::Max,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Preview {
    /// A slide, or an OME-Zarr store
    #[arg(value_name = "SLIDE|STORE")]
    pub(crate) source: PathBuf,

    /// The picture: .png, .jpg or .webp; or .dzi for a DeepZoom image, whose tiles go into NAME_files beside it
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// Quality of JPEG pictures and tiles, 1 to 100
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) quality: u8,

    #[command(flatten)]
    pub(crate) picture: Picture,

    #[command(flatten)]
    pub(crate) deep_zoom: DeepZoom,

    /// No progress, no summary
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What a picture shows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
pub(crate) struct Picture {
    /// Longest side in pixels, without legend and scale bar [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=32768))]
    pub(crate) size: Option<u64>,

    /// Draw this mask on the slide
    #[arg(long, value_name = "MASK")]
    pub(crate) overlay: Option<PathBuf>,

    /// outline: the edges of its regions; fill: all of them
    #[arg(long, value_enum, value_name = "outline|fill", requires = "overlay")]
    pub(crate) style: Option<Style>,

    /// With --style fill, how much of the colour is the class's, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "FRACTION", requires = "style", value_parser = fraction)]
    pub(crate) opacity: Option<f64>,

    /// Name the classes of the mask below the picture, with their colours and codes
    #[arg(long)]
    pub(crate) legend: bool,

    /// Draw a bar of a round length below the picture
    #[arg(long)]
    pub(crate) scale_bar: bool,

    /// Outline this region of interest on the slide, as `segment` takes it, or `auto`: the tissue
    #[arg(long, value_name = "FILE|auto")]
    pub(crate) roi: Option<PathBuf>,

    /// Which of its values are wanted: numbers, names of classes, or `any`
    #[arg(long, value_name = "VALUE,..", value_delimiter = ',', requires = "roi")]
    pub(crate) roi_value: Vec<String>,
}

/// How a DeepZoom image is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "DeepZoom (.dzi)")]
pub(crate) struct DeepZoom {
    /// Side of a tile in pixels, without its overlap [default: 254; with --copy-tiles that of the slide's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) tile_size: Option<u32>,

    /// Pixels that a tile has of its neighbours on each side [default: 1; with --copy-tiles 0]
    #[arg(long, value_name = "N")]
    pub(crate) overlap_pixels: Option<u32>,

    /// What tiles are written as; png and webp are without loss [default: jpg, of masks png]
    #[arg(long, value_enum, value_name = "jpg|png|webp")]
    pub(crate) tile_format: Option<TileFormat>,

    /// Chroma of JPEG tiles: one sample for four pixels, or one for each [default: 4:2:0]
    #[arg(long, value_enum, value_name = "4:2:0|4:4:4")]
    pub(crate) subsampling: Option<Subsampling>,

    /// Copy JPEG tiles of the slide as they are, where they are whole tiles of the same size without overlap
    #[arg(long)]
    pub(crate) copy_tiles: bool,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// Replace a DeepZoom image that is there already, finished or not
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Style {
    Outline,
    Fill,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TileFormat {
    #[value(alias = "jpeg")]
    Jpg,
    Png,
    Webp,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Subsampling {
    #[value(name = "4:2:0")]
    Halved,
    #[value(name = "4:4:4")]
    Full,
}

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// A slide, or an OME-Zarr store
    #[arg(value_name = "SLIDE|STORE")]
    pub(crate) source: PathBuf,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// A slide, or an OME-Zarr store
    #[arg(value_name = "SLIDE|STORE")]
    pub(crate) source: PathBuf,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Read {
    /// A slide, or an OME-Zarr store
    #[arg(value_name = "SLIDE|STORE")]
    pub(crate) source: PathBuf,

    /// The picture: a PNG file that does not exist yet
    #[arg(value_name = "OUT.png")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) opening: Opening,

    /// The level, 0 being the finest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) level: usize,

    /// Left, top, width and height in pixels of the level; it may stick out [default: the whole level]
    #[arg(long, value_name = "X,Y,W,H", value_parser = rectangle, allow_hyphen_values = true)]
    pub(crate) rect: Option<Rect>,

    /// A picture that travels with the slide, by name: label, macro, thumbnail, ...
    #[arg(long, value_name = "NAME", conflicts_with_all = ["level", "rect"])]
    pub(crate) associated: Option<String>,

    /// One channel of several, from 0 on
    #[arg(long, value_name = "N")]
    pub(crate) channel: Option<usize>,

    /// Replace a file that is there already
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The mask; its journal lies in the folder STORE.run beside it
    #[arg(value_name = "STORE")]
    pub(crate) store: PathBuf,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Postprocess {
    /// The mask; it stays as it is
    #[arg(value_name = "MASK")]
    pub(crate) mask: PathBuf,

    /// The result
    #[arg(short, long, value_name = "STORE")]
    pub(crate) output: PathBuf,

    /// Apply the post-processing that this model comes with
    #[arg(short, long, value_name = "MODEL", conflicts_with = "keep_largest")]
    pub(crate) model: Option<PathBuf>,

    /// Make background of all pixels with one of these values that are not in the largest connected component of such pixels; again for
    /// a further step
    #[arg(long, value_name = "VALUE,...", value_parser = values)]
    pub(crate) keep_largest: Vec<Values>,

    /// Replace a finished store at the output
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Say what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Values of a mask, separated by commas.
#[derive(Debug, Clone)]
pub(crate) struct Values(pub(crate) Vec<u16>);

fn values(text: &str) -> Result<Values, String> {
    let value = |part: &str| part.trim().parse().ok().filter(|v: &u16| *v > 0);
    let all: Option<Vec<u16>> = text.split(',').map(value).collect();
    let mut all = all.ok_or("values are whole numbers from 1 to 65535, separated by commas")?;
    all.sort_unstable();
    all.dedup();
    Ok(Values(all))
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Turn a model into one self-contained package
    Import(Box<Import>),
    /// Say what a model is and what it needs
    Info(ModelInfo),
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The model, as `segment -m` takes it
    #[arg(value_name = "MODEL")]
    pub(crate) source: PathBuf,

    /// The package: a folder that does not exist yet
    #[arg(value_name = "PACKAGE")]
    pub(crate) package: PathBuf,

    #[command(flatten)]
    pub(crate) weights: Weights,

    /// Micrometres per pixel that the model was trained at: needed where the model does not say, as nnU-Net's never do
    #[arg(long, value_name = "UM", value_parser = positive)]
    pub(crate) model_mpp: Option<f64>,

    /// Name of the package [default: the data set's]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Licence of the weights
    #[arg(long)]
    pub(crate) licence: Option<String>,

    /// Who trained the model, with what, on what
    #[arg(long)]
    pub(crate) provenance: Option<String>,

    /// What the model is for, and what not
    #[arg(long)]
    pub(crate) intended_use: Option<String>,

    /// Names, colours (#rrggbb) and codes of classes by their value, in place of the model's: `classes` in a JSON or TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) classes: Option<PathBuf>,

    /// Numbers in which the kernels of convolutions are kept; bf16 takes half the room and makes another model
    /// [default: as they are]
    #[arg(id = "format", long = "weights", value_enum)]
    pub(crate) format: Option<WeightFormat>,

    /// What the original framework computed of a picture: a folder with input.png, logits.safetensors, mask.png and test.toml
    #[arg(long, value_name = "FOLDER")]
    pub(crate) test_vector: Option<PathBuf>,

    /// Compute the test vector of this picture, no larger than a tile, in place of a pattern or of what comes with the model
    #[arg(long, value_name = "PNG", conflicts_with = "test_vector")]
    pub(crate) test_image: Option<PathBuf>,

    /// Segment this slide or picture in every precision, and keep how many pixels differ from those of f32 as sums of products
    #[arg(long, value_name = "SLIDE")]
    pub(crate) measure: Option<PathBuf>,

    /// Where to measure: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", requires = "measure")]
    pub(crate) device: microtome::unet::Device,

    /// Numbers in which `segment` should compute where the device is fast in them; less than f32 needs --measure
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub(crate) recommend: Option<Precision>,
}

#[derive(Debug, Args)]
pub(crate) struct ModelInfo {
    /// The model, as `segment -m` takes it
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,

    #[command(flatten)]
    pub(crate) weights: Weights,

    /// Compute the test vector that travels with the model, and compare
    #[arg(long)]
    pub(crate) check: bool,

    /// Every layer of the network with its output, parameters and multiply-adds
    #[arg(long)]
    pub(crate) layers: bool,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Opening {
    pub(crate) fn options(&self) -> OpenOptions {
        let mut limits = Limits::default();
        limits.decoded_bytes = self.decode_limit.0;
        OpenOptions::default()
            .access(if self.no_mmap { ByteAccess::Read } else { ByteAccess::Map })
            .colors(match self.icc {
                Icc::Ignore => Colors::Stored,
                Icc::Srgb => Colors::Srgb,
            })
            .backend(match self.backend {
                Backend::Auto => slide::Backend::Auto,
                Backend::Native => slide::Backend::Native,
                Backend::Openslide => slide::Backend::OpenSlide,
            })
            .limits(limits)
    }

    /// Opens a slide, and says where it stays as it is although its colours were to be converted.
    pub(crate) fn open(&self, path: &Path) -> Result<Box<dyn SlideReader>, microtome::Error> {
        let slide = slide::open(path, &self.options()).map_err(microtome::Error::Read)?;
        if matches!(self.icc, Icc::Srgb) && slide.info().colors == Colors::Stored {
            crate::failure::say(&format!(
                "note: {}: no ICC profile to convert by: colours are as they are stored",
                path.display()
            ));
        }
        Ok(slide)
    }
}

/// Refuses a URL where a picture is to go.
pub(crate) fn is_file(output: &Path) -> anyhow::Result<()> {
    if is_remote(output) {
        anyhow::bail!("{}: pictures are written to files, not into an object store", output.display());
    }
    Ok(())
}

impl Weights {
    pub(crate) fn options(&self) -> microtome::unet::ModelOptions {
        microtome::unet::ModelOptions {
            folds: self.folds.clone().unwrap_or_default(),
            checkpoint: match self.checkpoint {
                Checkpoint::Final => microtome::unet::Checkpoint::Final,
                Checkpoint::Best => microtome::unet::Checkpoint::Best,
            },
        }
    }
}

fn resolution(text: &str) -> Result<TargetResolution, String> {
    if text == "native" {
        return Ok(TargetResolution::Native);
    }
    match text.parse::<f64>() {
        Ok(mpp) if mpp > 0.0 && mpp.is_finite() => Ok(TargetResolution::Mpp(mpp)),
        _ => Err("micrometres per pixel, such as 0.5, or `native`".into()),
    }
}

fn levels(text: &str) -> Result<Levels, String> {
    match text.parse() {
        _ if text == "source" => Ok(Levels::Source),
        Ok(count) => Ok(Levels::Count(count)),
        Err(_) => Err("a number of levels, or `source`".into()),
    }
}

fn rectangle(text: &str) -> Result<Rect, String> {
    let wrong = || "four numbers, such as 1000,2000,512,512".to_owned();
    let numbers: Vec<&str> = text.split(',').map(str::trim).collect();
    let [x, y, width, height] = numbers[..] else { return Err(wrong()) };
    let rect = Rect::new(
        x.parse().map_err(|_| wrong())?,
        y.parse().map_err(|_| wrong())?,
        width.parse().map_err(|_| wrong())?,
        height.parse().map_err(|_| wrong())?,
    );
    // Far beyond any slide, and far from where sums overflow.
    let far = 1_i64 << 40;
    if rect.is_empty() || rect.x.abs() > far || rect.y.abs() > far || rect.width.max(rect.height) > far as u64 {
        return Err("a rectangle of at least one pixel, not beyond 2^40".into());
    }
    Ok(rect)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("a number above 0, such as 0.5".into()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| "a number from 0 to 1".into())
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds")?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|_| "seconds, 0 or more".into())
}

/// With none at all, every process would take from every other what it has.
fn patience(text: &str) -> Result<std::time::Duration, String> {
    seconds(text).ok().filter(|time| !time.is_zero()).ok_or_else(|| "seconds, more than 0".into())
}

fn folds(text: &str) -> Result<microtome::unet::Folds, String> {
    use microtome::unet::Folds;
    if text == "all" {
        return Ok(Folds::All);
    }
    let numbers: Result<Vec<u32>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    numbers.map(Folds::List).map_err(|_| "numbers of folds, such as 0,1,2, or `all`".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
