//! nnU-Net v2 results: folders, as `nnUNetv2_train` leaves them, and archives, as `nnUNetv2_export_model_to_zip` makes them of folders.
//!
//! Layout and meaning: nnU-Net 2.8.1 (`nnunetv2/utilities/plans_handling/plans_handler.py`,
//! `nnunetv2/utilities/label_handling/label_handling.py`, `nnunetv2/inference/predict_from_raw_data.py`).
//! What cannot be honoured is refused by name.

mod checkpoint;
mod dataset;
mod export;
mod folder;
mod network;
mod plans;
mod postprocessing;
mod trainers;

pub(crate) use checkpoint::read_settings;
pub(crate) use export::open as open_export;
pub(crate) use folder::{BUNDLE_SETTINGS, is_trainer_folder, load, trainer_folders};
