//! OpenSlide to build and to test with, from the packages that the environment of the cross-checks holds: no root, no C compiler.
//!
//! The crate `openslide-sys` asks pkg-config where OpenSlide is and makes its bindings with libclang. The wheel `openslide-bin` holds the shared
//! library and no header, so the header is ours (the interface of OpenSlide 4, without any other header, because the wheel
//! `libclang` has none), and so is the file for pkg-config. All lies under the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;
use crate::workspace::Workspace;

/// The interface of OpenSlide 4: <https://openslide.org/api/openslide_8h.html>.
const HEADER: &str = "\
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __SIZE_TYPE__ size_t;
typedef struct _openslide openslide_t;
typedef struct _openslide_cache openslide_cache_t;
const char *openslide_get_version(void);
const char *openslide_detect_vendor(const char *filename);
openslide_t *openslide_open(const char *filename);
void openslide_close(openslide_t *osr);
const char *openslide_get_error(openslide_t *osr);
int32_t openslide_get_level_count(openslide_t *osr);
void openslide_get_level0_dimensions(openslide_t *osr, int64_t *w, int64_t *h);
void openslide_get_level_dimensions(openslide_t *osr, int32_t level, int64_t *w, int64_t *h);
double openslide_get_level_downsample(openslide_t *osr, int32_t level);
int32_t openslide_get_best_level_for_downsample(openslide_t *osr, double downsample);
void openslide_read_region(openslide_t *osr, uint32_t *dest, int64_t x, int64_t y, int32_t level, int64_t w, int64_t h);
const char *const *openslide_get_property_names(openslide_t *osr);
const char *openslide_get_property_value(openslide_t *osr, const char *name);
int64_t openslide_get_icc_profile_size(openslide_t *osr);
void openslide_read_icc_profile(openslide_t *osr, void *dest);
const char *const *openslide_get_associated_image_names(openslide_t *osr);
void openslide_get_associated_image_dimensions(openslide_t *osr, const char *name, int64_t *w, int64_t *h);
void openslide_read_associated_image(openslide_t *osr, const char *name, uint32_t *dest);
int64_t openslide_get_associated_image_icc_profile_size(openslide_t *osr, const char *name);
void openslide_read_associated_image_icc_profile(openslide_t *osr, const char *name, void *dest);
openslide_cache_t *openslide_cache_create(size_t capacity);
void openslide_set_cache(openslide_t *osr, openslide_cache_t *cache);
void openslide_cache_release(openslide_cache_t *cache);
";

/// What a build with the feature `openslide` takes.
#[derive(Debug)]
pub(crate) struct OpenSlide {
    folder: PathBuf,
    libclang: PathBuf,
}

impl OpenSlide {
    /// Makes `target/openslide` from the packages of a Python, or says in a clause what is missing to do so.
    pub(crate) fn prepare(workspace: &Workspace, python: impl Fn() -> Command) -> Result<Result<Self, String>> {
        if !shell::succeeds(Command::new(pkg_config()).arg("--version")) {
            return Ok(Err("pkg-config is not installed (Debian: pkg-config)".into()));
        }
        let Some((library, link)) = names() else {
            return Ok(Err("it is set up on Linux and macOS only".into()));
        };
        let packages = shell::read(python().args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))?;
        let packages = PathBuf::from(packages.trim());
        let (openslide, libclang) = (packages.join("openslide_bin").join(library), packages.join("clang/native"));
        for (path, package) in [(&openslide, "openslide-bin"), (&libclang, "libclang")] {
            if !path.exists() {
                return Ok(Err(format!("the Python package {package} holds no {}", path.display())));
            }
        }
        let folder = workspace.target.join("openslide");
        let (headers, libraries) = (folder.join("include"), folder.join("lib"));
        for folder in [&headers, &libraries] {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let version = shell::read(python().args(["-c", "import openslide; print(openslide.__library_version__)"]))?;
        let description = format!(
            "Name: openslide\nDescription: OpenSlide of the Python package openslide-bin\nVersion: {}\n\
             Libs: -L\"{}\" -lopenslide\nCflags: -I\"{}\"\n",
            version.trim(),
            libraries.display(),
            headers.display()
        );
        let library_bytes = std::fs::read(&openslide).with_context(|| openslide.display().to_string())?;
        for name in [library, link] {
            update(&libraries.join(name), &library_bytes)?;
        }
        update(&headers.join("openslide.h"), HEADER.as_bytes())?;
        update(&folder.join("openslide.pc"), description.as_bytes())?;
        Ok(Ok(Self { folder, libclang }))
    }

    /// Tells a cargo command, and what it runs, where OpenSlide is.
    pub(crate) fn pass_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.run_with(command.env("PKG_CONFIG_PATH", &self.folder).env("LIBCLANG_PATH", &self.libclang))
    }

    /// Tells a program that was built where OpenSlide is.
    pub(crate) fn run_with<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        command.env(variable, self.folder.join("lib"))
    }
}

/// What the library is called at run time, and what the linker looks for.
fn names() -> Option<(&'static str, &'static str)> {
    match std::env::consts::OS {
        "linux" => Some(("libopenslide.so.1", "libopenslide.so")),
        "macos" => Some(("libopenslide.1.dylib", "libopenslide.dylib")),
        _ => None,
    }
}

/// The program that `openslide-sys` asks.
fn pkg_config() -> std::ffi::OsString {
    std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into())
}

/// Writes a file unless it is the same already: cargo builds anew when a header is newer than what was built with it.
fn update(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    std::fs::write(path, content).with_context(|| path.display().to_string())
}
