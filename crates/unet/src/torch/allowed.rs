//! Which classes and functions a checkpoint may name. None is ever called; those that are not listed are refused by name all the same,
//! because a file that refers to others is not what it claims to be.

/// What checkpoints of PyTorch and of the programs that write them are made of: containers, tensors, scalars and arrays of logs,
/// settings. Names as of Python 3.13, PyTorch 2.15, NumPy 2, MONAI 1.6, Lightning 2.6 and OmegaConf 2.3, and those of older versions.
const ALLOWED: &[(&[&str], &[&str])] = &[
    (&["collections"], &["OrderedDict", "defaultdict", "Counter", "deque"]),
    (&["_codecs"], &["encode"]),
    (
        &["builtins", "__builtin__"],
        &[
            "set",
            "frozenset",
            "list",
            "dict",
            "tuple",
            "int",
            "float",
            "complex",
            "bool",
            "str",
            "bytes",
            "bytearray",
            "slice",
            "range",
        ],
    ),
    (
        &["pathlib", "pathlib._local"],
        &["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"],
    ),
    (&["argparse"], &["Namespace"]),
    (&["types"], &["SimpleNamespace"]),
    (&["typing"], &["Any"]),
    (&["datetime"], &["date", "datetime", "time", "timedelta", "timezone"]),
    (
        &["torch"],
        &[
            "device",
            "Size",
            "Tensor",
            "float16",
            "bfloat16",
            "float32",
            "float64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "int8",
            "int16",
            "int32",
            "int64",
            "bool",
            "complex64",
            "complex128",
            "qint8",
            "qint32",
            "quint8",
            "float8_e4m3fn",
            "float8_e5m2",
            "per_tensor_affine",
            "per_channel_affine",
        ],
    ),
    (&["torch", "torch.cuda"], STORAGES),
    (&["torch.storage"], &["TypedStorage", "UntypedStorage", "_TypedStorage", "_UntypedStorage"]),
    (&["torch.serialization"], &["_get_layout"]),
    (
        &["torch._utils"],
        &[
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "_rebuild_qtensor",
            "_rebuild_sparse_tensor",
            "_rebuild_nested_tensor",
            "_rebuild_meta_tensor_no_storage",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_device_tensor_from_cpu_tensor",
            "_rebuild_wrapper_subclass",
        ],
    ),
    (&["torch._tensor"], &["_rebuild_from_type", "_rebuild_from_type_v2"]),
    (&["torch.nn.parameter"], &["Parameter", "Buffer"]),
    (&["torch.torch_version"], &["TorchVersion"]),
    (
        &["numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"],
        &["scalar", "dtype", "ndarray", "_reconstruct", "_frombuffer"],
    ),
    (&["monai.data.meta_tensor"], &["MetaTensor"]),
    (&["monai.utils.enums"], &["MetaKeys", "SpaceKeys", "TraceKeys"]),
    (
        &[
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        ],
        &["AttributeDict"],
    ),
    (&["omegaconf.dictconfig"], &["DictConfig"]),
    (&["omegaconf.listconfig"], &["ListConfig"]),
    (&["omegaconf.base"], &["ContainerMetadata", "Metadata"]),
    (
        &["omegaconf.nodes"],
        &[
            "AnyNode",
            "StringNode",
            "IntegerNode",
            "FloatNode",
            "BooleanNode",
            "BytesNode",
            "PathNode",
            "EnumNode",
            "InterpolationResultNode",
        ],
    ),
];

const STORAGES: &[&str] = &[
    "FloatStorage",
    "DoubleStorage",
    "HalfStorage",
    "BFloat16Storage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
    "ComplexFloatStorage",
    "ComplexDoubleStorage",
    "QInt8Storage",
    "QInt32Storage",
    "QUInt8Storage",
    "QUInt4x2Storage",
    "QUInt2x4Storage",
];

/// Packages whose classes are parts of networks. One of them in a pickle means that somebody has saved a network whole.
const OF_NETWORKS: [&str; 7] = [
    "torch.nn.modules",
    "monai.networks",
    "monai.bundle",
    "segmentation_models_pytorch",
    "dynamic_network_architectures",
    "torchvision.models",
    "timm",
];

/// True for what a checkpoint may name.
pub(super) fn is_allowed(module: &str, name: &str) -> bool {
    ALLOWED.iter().any(|(modules, names)| modules.contains(&module) && names.contains(&name))
}

/// True for what belongs to a network as a Python object, by its module.
pub(super) fn is_of_network(module: &str) -> bool {
    OF_NETWORKS
        .iter()
        .any(|package| module.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_count() {
        assert!(is_allowed("torch", "FloatStorage"));
        assert!(is_allowed("numpy._core.multiarray", "scalar"));
        for (module, name) in [
            ("torch", "EvilStorage"),
            ("torch.storage", "_load_from_bytes"),
            ("torch._utils", "_rebuild_"),
            ("numpy.core", "scalar"),
            ("numpy", "load"),
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("os", "system"),
            ("collections", ""),
        ] {
            assert!(!is_allowed(module, name), "{module}.{name}");
        }
        assert!(is_of_network("torch.nn.modules.conv") && is_of_network("timm"));
        assert!(!is_of_network("torch.nn.modulesque") && !is_of_network("timmy.models"));
    }
}
