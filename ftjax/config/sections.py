"""Every key of the configuration but those of methods and tasks: default, range and meaning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ftjax import optimizers
from ftjax.options import Above0, Encoding, Natural, NotNegative, Positive, Regex, Seed, Share

Decay = Annotated[float, "[0, 1)"]
Dtype = Literal["float32", "bfloat16"]
Size = Annotated[int, "[-1, inf)"]
Policy = Literal[
    *("none", "dots", "dots_context", "dots_no_batch", "narrow_context"),
    *("context", "offload", "full"),
]
Rows = Annotated[int, "[1, 1000000]"]  # of a batch, which is in memory


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        path: a folder, a .gguf file, a hub id, "minilm" or "smollm2".
        dtype: of what is computed.
        products: what is multiplied of float32 activations, with sums in float32; auto: bfloat16 on
            CPUs that have units for it (ftjax/parallel/narrow.py); float8: projections in 8 bits,
            for GPUs from the H100 on (ftjax/parallel/float8.py).
        trainable_dtype: of the leaves that train, and of their moments.
        remat: what is computed again in the backward pass, in less memory: from nothing to all;
            for decoders also one for each of `model.segments`, where those are lengths.
        segments: "auto", "unrolled", "scan", or lengths of segments of layers, as "4,2".
        attention: the program of attention; "gpu" is triton for packed rows, cudnn or xla, "splash"
            for decoders on TPUs.
        attention_block: of splash: side of the blocks of scores, at most.
        attention_fused: of splash: all gradients in one kernel, those of queries summed in `dtype`.
        parts: of feed-forward blocks, computed in turn in less memory.
        layout: auto takes mesh, remat, parts and the like from a table of layouts that were
            compiled for the same model, method and TPUs, where there is one.
        gather_head: over a mesh of more tokens than words, sends the vocabulary's kernel to the
            tokens, not the tokens to parts of it.
        whole: projections whose kernels every device of the axis fsdp holds whole: nothing of them
            is sent, in more memory.
        sparse_cores: of TPUs that have them (v5p, v6e): collectives run on these, beside what is
            computed.
        adapter: a PEFT or AdapterHub folder of the method, or a run's work folder, to start from.
        resize_vocabulary: adds rows to the table where the tokenizer has more words than it.
        from_run: a work folder over `model.path` whose model, merged, is begun with.
        from_step: of its checkpoint; 0: its best.
        new_head: starts a new head even where the folder has one.
        new: of a model made at `model.path`: keys of its config.json, "model_type" among them,
            "tokenizer" and "vocab_size" (ftjax/setup/new_model.py).
    """

    path: str = "minilm"
    dtype: Dtype = "float32"
    products: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    trainable_dtype: Dtype = "float32"
    remat: Policy | tuple[Policy, ...] = "none"
    segments: str | tuple[Positive, ...] = "auto"
    attention: Literal["auto", "xla", "cudnn", "triton", "gpu", "splash"] = "auto"
    attention_block: Annotated[int, "[128, inf)"] = 512
    attention_fused: bool = False
    parts: Positive = 1
    gather_head: bool = False
    whole: tuple[Literal["query", "key", "value", "output", "up", "gate", "down"], ...] = ()
    sparse_cores: bool = False
    layout: Literal["own", "auto"] = "own"
    adapter: str = ""
    resize_vocabulary: bool = False
    from_run: str = ""
    from_step: Natural = 0
    new_head: bool = False


@dataclass(frozen=True)
class Splits:
    """Rows (1 or more) or shares (below 1) drawn where the source lacks a split.

    Attributes:
        train: 0: what the others leave.
        validation: 0: none.
        test: 0: none.
        folds: parts of the training rows, one of which is the validation split: of cross-validation
            (`ftjax compare --folds`); 0: drawn by size.
        fold: which of them it is, from 0.
    """

    train: NotNegative = 0.0
    validation: NotNegative = 0.1
    test: NotNegative = 0.0
    folds: Natural = 0
    fold: Natural = 0


@dataclass(frozen=True)
class SplitNames:
    """What the source calls its splits, where not by the usual names: files or splits of the hub.

    Attributes:
        train: as "train_sft"; empty: train.
        validation: as "validation_matched"; empty: validation, valid, dev or val.
        test: empty: test.
    """

    train: str = ""
    validation: str = ""
    test: str = ""


@dataclass(frozen=True)
class Data:
    """Rows, and how they become batches. What the files call fields is `data.columns`.

    Attributes:
        source: the form of what is at `data.path`, where its suffix and content do not say it.
        path: a file, or a folder holding train, validation and test files, of which each may be
            several, as train-00000-of-00010.parquet; a hub id.
        encoding: of text files, as "cp1252"; auto: UTF-8, UTF-16 or GB18030.
        delimiter: of csv files; empty: a comma, in .tsv files a tab.
        quoting: of csv files; auto: between tabs, marks are text.
        text_rows: what a row of a text file is.
        streaming: rows to train on are read while training, window by window.
        mixture: streams, as {"path": ..., "weight": ..., and source, columns}.
        window: rows of a stream in memory, which are shuffled.
        buffer: rows of each source of a stream that are shuffled before windows are filled with
            them, as where files are sorted; the files of a source are then read in another order
            each time. 0: a window's rows are neighbours.
        on_error: what comes of a bad row; one that is skipped is counted, and named in the report.
        split_seed: of the drawn splits.
        stratify: drawn splits have each label in the same proportion.
        group: a field, or what the file calls it; rows with one value of it, as all texts of one
            author or all targets of one source, are drawn into one split.
        max_length: tokens of an example; longer ones are cut.
        batching: by lengths, several examples a row, or all padded to the longest.
        buckets: lengths compiled at most; packed, two are tried.
        pack_length: tokens of a packed row at most; 0: by cost on a CPU.
        prepare: steps in order (`ftjax list preparation`): names, or {"step": name, option: value}.
    """

    source: Literal[
        "auto",
        *("json", "csv", "parquet", "arrow", "xlsx", "text", "conll", "squad"),
        *("hub", "tfds", "movie_reviews"),
    ] = "auto"
    path: str = ""
    encoding: Encoding = "auto"
    delimiter: str = ""
    quoting: Literal["auto", "double", "none"] = "auto"
    text_rows: Literal["line", "paragraph", "file"] = "line"
    streaming: bool = False
    mixture: tuple[Mapping[str, Any], ...] = ()
    window: Positive = 8192
    buffer: Natural = 0
    on_error: Literal["stop", "skip"] = "stop"
    split_seed: Seed = 0
    stratify: bool = False
    group: str = ""
    max_length: Annotated[int, "[4, inf)"] = 128
    batching: Literal["bucket", "pack", "pad"] = "bucket"
    buckets: Positive = 6
    pack_length: Natural = 0
    prepare: tuple[str | Mapping[str, Any], ...] = ("drop_duplicates",)


@dataclass(frozen=True)
class Optimizer:
    """How what trains follows its gradients.

    Attributes:
        name: of the rule.
        learning_rate: where the schedule is highest; auto: by method and model size
            (`ftjax list rates`).
        schedule: of the learning rate, after the warm-up.
        warmup: steps, or a share below 1.
        weight_decay: not on biases and norms.
        clip_norm: of the gradients of all that trains; 0 turns it off.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        momentum: of sgd.
    """

    name: Annotated[str, optimizers.REGISTRY] = "adamw"
    learning_rate: Literal["auto"] | Above0 = "auto"
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    warmup: NotNegative = 0.06
    weight_decay: NotNegative = 0.0
    clip_norm: NotNegative = 1.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: NotNegative = 1e-8
    momentum: Decay = 0.0


@dataclass(frozen=True)
class Regularization:
    """Techniques against overfitting, all off by default (ftjax/regularization).

    Attributes:
        adversarial: trains at words moved so that the loss rises.
        epsilon: how far an example's words are moved, all in all (a word is about 1).
        step_size: of pgd and freelb.
        steps: of pgd and freelb.
        rdrop: weight of the divergence of two passes under dropout; 0: one pass.
        mixup: α of Beta(α, α), the shares in which two examples are mixed; 0: none.
        cutoff: share of words whose embeddings are zeroed.
        neftune: α of uniform noise on the embeddings of words; 0: none.
        l2_sp: α of the pull of pretrained parameters to where they were.
        l2_sp_new: β of the pull of new parameters to 0.
    """

    adversarial: Literal["none", "fgm", "pgd", "freelb"] = "none"
    epsilon: Above0 = 0.2
    step_size: Above0 = 0.1
    steps: Positive = 3
    rdrop: NotNegative = 0.0
    mixup: NotNegative = 0.0
    cutoff: Share = 0.0
    neftune: NotNegative = 0.0
    l2_sp: NotNegative = 0.0
    l2_sp_new: NotNegative = 0.0


@dataclass(frozen=True)
class Train:
    """The run.

    Attributes:
        epochs: passes over the rows to train on.
        steps: when positive, instead of epochs.
        batch_size: rows an update, over all devices and accumulation.
        eval_batch_size: rows at once, over all devices, where nothing is trained.
        accumulation: parts of a batch whose gradients are added up in turn, in less memory.
        eval_every: steps; 0: once an epoch.
        best_metric: of the validation split, also of what is written for it, as bleu, which takes
            longer; auto: the task's.
        average: decay of a moving average of what trains, which is evaluated; 0: none.
        swa_start: share of the run from which on an equal average is; 0: none.
        swa_every: steps between what is averaged.
        skip_limit: steps of no finite loss or gradient, which change nothing, at most.
        early_stopping: evaluations without a better one; 0 turns it off.
        checkpoint_every: steps; 0: at evaluations.
        keep: newest checkpoints, besides the best.
        log_every: steps.
        profile_steps: first and last that are traced into profile/.
        dump_programs: text and cost of compiled steps, into programs/.
        cache_frozen: where only the head trains, runs the backbone once.
        compiler: options of XLA for the step, as "xla_tpu_scoped_vmem_limit_kib=65536".
    """

    epochs: Natural = 3
    steps: Natural = 0
    batch_size: Rows = 32
    eval_batch_size: Rows = 64
    accumulation: Positive = 1
    eval_every: Natural = 0
    best_metric: str = "auto"
    average: Decay = 0.0
    swa_start: Share = 0.0
    swa_every: Positive = 1
    skip_limit: Natural = 3
    early_stopping: Natural = 0
    checkpoint_every: Natural = 0
    keep: Positive = 1
    log_every: Positive = 10
    profile_steps: tuple[Positive, ...] = ()
    dump_programs: bool = False
    cache_frozen: bool = True
    compiler: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mesh:
    """Devices an axis; -1 for one of them: what the others leave.

    Attributes:
        data: copies of all parameters, a part of the rows each.
        fsdp: parameters and rows are spread.
        expert: experts of a mixture, and rows, are spread.
        sequence: the positions of a row are spread.
        tensor: heads and features are spread.
        near: axes along which devices are neighbours, the last one nearest; by default tensor,
            sequence and expert come before fsdp, and data is last.
        replicate: patterns of parameters that stay whole.
    """

    data: Size = -1
    fsdp: Size = 1
    expert: Size = 1
    sequence: Size = 1
    tensor: Size = 1
    near: tuple[Literal["data", "fsdp", "expert", "sequence", "tensor"], ...] = ()
    replicate: tuple[Regex, ...] = ()


SECTIONS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "data.splits": Splits,
    "data.split_names": SplitNames,
    "optimizer": Optimizer,
    "regularization": Regularization,
    "train": Train,
    "mesh": Mesh,
}
