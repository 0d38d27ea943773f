//! What the class that trained a network says about the network.
//!
//! Names: nnU-Net 2.8.1, `nnunetv2/training/nnUNetTrainer`. Most of its classes change the training alone, and mirroring, which the
//! checkpoint tells.

/// Those that train the network of the plans, sorted.
const OF_THE_PLANS: [&str; 57] = [
    "nnUNetTrainer",
    "nnUNetTrainerAdam",
    "nnUNetTrainerAdam1en3",
    "nnUNetTrainerAdam3en4",
    "nnUNetTrainerAdan",
    "nnUNetTrainerAdan1en1",
    "nnUNetTrainerAdan1en3",
    "nnUNetTrainerAdan3en4",
    "nnUNetTrainerAdanCosAnneal",
    "nnUNetTrainerBenchmark_5epochs",
    "nnUNetTrainerBenchmark_5epochs_noDataLoading",
    "nnUNetTrainerCELoss",
    "nnUNetTrainerCELoss_5epochs",
    "nnUNetTrainerCosAnneal",
    "nnUNetTrainerDA5",
    "nnUNetTrainerDA5Segord0",
    "nnUNetTrainerDA5_10epochs",
    "nnUNetTrainerDA5ord0",
    "nnUNetTrainerDiceCELoss_noSmooth",
    "nnUNetTrainerDiceLoss",
    "nnUNetTrainerDiceTopK10Loss",
    "nnUNetTrainerNoDA",
    "nnUNetTrainerNoDeepSupervision",
    "nnUNetTrainerNoMirroring",
    "nnUNetTrainerTopk10Loss",
    "nnUNetTrainerTopk10LossLS01",
    "nnUNetTrainerVanillaAdam",
    "nnUNetTrainerVanillaAdam1en3",
    "nnUNetTrainerVanillaAdam3en4",
    "nnUNetTrainer_100epochs",
    "nnUNetTrainer_10epochs",
    "nnUNetTrainer_1epoch",
    "nnUNetTrainer_2000epochs",
    "nnUNetTrainer_2000epochs_NoMirroring",
    "nnUNetTrainer_20epochs",
    "nnUNetTrainer_250epochs",
    "nnUNetTrainer_250epochs_NoMirroring",
    "nnUNetTrainer_4000epochs",
    "nnUNetTrainer_4000epochs_NoMirroring",
    "nnUNetTrainer_500epochs",
    "nnUNetTrainer_50epochs",
    "nnUNetTrainer_5epochs",
    "nnUNetTrainer_750epochs",
    "nnUNetTrainer_8000epochs",
    "nnUNetTrainer_8000epochs_NoMirroring",
    "nnUNetTrainer_DASegOrd0",
    "nnUNetTrainer_DASegOrd0_NoMirroring",
    "nnUNetTrainer_noDummy2DDA",
    "nnUNetTrainer_onlyMirror01",
    "nnUNetTrainer_onlyMirror01_1500ep",
    "nnUNetTrainer_onlyMirror01_DA5",
    "nnUNetTrainer_onlyMirror01_DASegOrd0",
    "nnUNetTrainer_probabilisticOversampling",
    "nnUNetTrainer_probabilisticOversampling_010",
    "nnUNetTrainer_probabilisticOversampling_033",
    "nnUNetTrainer_warmup",
    "nnUNet_Trainer_BS8",
];

/// Which network a trainer trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trained {
    /// That of the plans.
    Plans,
    /// That of the plans with batch normalisation.
    BatchNorm,
    /// A transformer.
    Transformer,
    /// A class that nnU-Net does not have trains whatever it likes: mostly that of the plans. The names and shapes of the weights tell.
    Unknown,
}

impl Trained {
    pub(super) fn by(trainer: &str) -> Self {
        if OF_THE_PLANS.binary_search(&trainer).is_ok() {
            return Self::Plans;
        }
        match trainer {
            "nnUNetTrainerBN" => Self::BatchNorm,
            name if name.contains("Primus") => Self::Transformer,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted() {
        assert!(OF_THE_PLANS.is_sorted());
        assert_eq!(Trained::by("nnUNetTrainer"), Trained::Plans);
        assert_eq!(Trained::by("nnUNetTrainer_onlyMirror01"), Trained::Plans);
        assert_eq!(Trained::by("nnUNet_Trainer_BS8"), Trained::Plans);
        assert_eq!(Trained::by("nnUNetTrainerBN"), Trained::BatchNorm);
        assert_eq!(Trained::by("_Primus_S_96_BS1"), Trained::Transformer);
        assert_eq!(Trained::by("nnUNetTrainer_mine"), Trained::Unknown);
    }
}
