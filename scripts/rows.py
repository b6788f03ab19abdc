"""The rows of RESULTS.md: which trainings there are, and which systems are measured."""

from dataclasses import dataclass

MODEL = "models/smollm2-135m-instruct"
LISTS = ("bm25", "splade_pp_ed")
DEPTHS = (20, 100)
WINDOW = 8  # passages that are read at once, the most that were trained
TWICE = "twice"  # after sliding, the best 20 are read again
COLUMNS = tuple(f"{first_stage}.{depth}{way}" for first_stage in LISTS for depth in DEPTHS for way in ("", f".{TWICE}"))
DIRECT = ("--model.init_args.prompt.format=direct",)
LONGER = (*DIRECT, "--trainer.max_steps=240", "--trainer.val_check_interval=120")
SHORT = ("--trainer.max_steps=150", "--trainer.val_check_interval=75")
# DPO with another share of replay reads as many windows in other numbers of steps.
REPLAYING = ("--data.init_args.replay_share=0.5", "--trainer.max_steps=136", "--trainer.val_check_interval=68")
NO_REPLAY = ("--data.init_args.replay=null", "--trainer.max_steps=68", "--trainer.val_check_interval=34")
FORGETFUL = (*SHORT, "--data.init_args.replay=null")
UNPRACTISED = (*SHORT, "--model.init_args.backbone.adapter=null")
JUDGED = (
    "--trainer.max_steps=150",
    "--data.init_args.replay=null",
    "--data.init_args.augmentation.min_size=4",  # besides at most three that are relevant, others
    "--trainer.max_epochs=-1",
    "--trainer.val_check_interval=150",
    "--trainer.check_val_every_n_epoch=null",
)
BY_HEART = (
    *JUDGED,
    "--trainer.max_steps=60",
    "--trainer.val_check_interval=60",
    "--trainer.limit_val_batches=1",  # as short as it can be: training's own loss tells
    "--data.init_args.augmentation.min_size=6",
    "--data.init_args.augmentation.max_size=6",
)


@dataclass(frozen=True)
class Training:
    """A recipe that is run.

    Attributes:
        start: the training whose adapter it starts from.
        options: further arguments.
        data: the file that it learns from.
    """

    recipe: str
    start: str | None = None
    options: tuple[str, ...] = ()
    data: str = "train"

    @property
    def starts(self) -> tuple[str, ...]:
        """The trainings that come before it."""
        return () if self.start is None else (self.start,)


@dataclass(frozen=True)
class Mean:
    """The mean of several trainings' adapters (`evaluate.py average`).

    Attributes:
        of: the trainings.
    """

    of: tuple[str, ...]

    @property
    def starts(self) -> tuple[str, ...]:
        """The trainings that come before it."""
        return self.of


@dataclass(frozen=True)
class Row:
    """A system that is measured.

    Attributes:
        title: what it is.
        training: whose adapter is measured; None: the model as it is.
        decode: how it ranks.
        depths: how much of a list it ranks.
        twice: whether it reads lists twice (see `Twice`), or slides over them alone.
        lists: the first stages whose lists it ranks.
        asked: whether it is asked what it still knows.
        window: how many passages it reads at once; it slides by half of it.
        knows_answers: whether it has learned the judgements that it is measured by.
    """

    title: str
    training: str | None
    decode: str
    depths: tuple[int, ...] = DEPTHS
    twice: bool = False
    lists: tuple[str, ...] = LISTS
    asked: bool = True
    window: int = WINDOW
    knows_answers: bool = False


def title_of(column: str) -> str:
    """A column's heading: the first stage, how much of its lists, and whether they are read twice."""
    first_stage, depth, *reading = column.split(".")
    return ", ".join([first_stage, f"top {depth}", *reading])


TRAININGS: dict[str, Training | Mean] = {
    "pointing": Training("trecdl.pointing", data="pointing"),
    # Direct answers are shorter, hence the more of them: about as much work as chain SFT and DPO are together.
    "direct_asked": Training(
        "trecdl.sft", "pointing", (*DIRECT, "--trainer.max_steps=616", "--trainer.val_check_interval=308")
    ),
    "chain_asked": Training("trecdl.sft", "pointing"),
    "direct_lists": Training("trecdl.lists", "direct_asked", LONGER, "lists"),
    "direct_orders": Training("trecdl.lists", "direct_asked", LONGER, "orders"),
    "direct": Mean(("direct_lists", "direct_orders")),
    "chain_lists": Training("trecdl.lists", "chain_asked", data="lists"),
    "chain_orders": Training("trecdl.lists", "chain_asked", data="orders"),
    "chain": Mean(("chain_lists", "chain_orders")),
    "dpo": Training("trecdl.dpo", "chain", data="orders"),
    "dpo_all": Training("trecdl.dpo", "chain", ("--data.init_args.negatives=all",), "orders"),
    "dpo_on_policy": Training("trecdl.dpo", "chain", ("--data.init_args.negatives=on_policy",), "orders"),
    "dpo_replaying": Training("trecdl.dpo", "chain", REPLAYING, "orders"),
    "dpo_forgetful": Training("trecdl.dpo", "chain", NO_REPLAY, "orders"),
    "dpo_alone": Training("trecdl.dpo", "chain", ("--model.init_args.sft_weight=0",), "orders"),
    "short": Training("trecdl.sft", "pointing", SHORT),
    "forgetful": Training("trecdl.sft", "pointing", FORGETFUL),
    "unpractised": Training("trecdl.sft", None, UNPRACTISED),
    "judged": Training("trecdl.sft", "chain", JUDGED, "judged"),
    "by_heart": Training("trecdl.sft", "chain", BY_HEART, "few"),
}
ROWS = {
    "base": Row("untuned", None, "chain", depths=(20,)),  # it answers in the order of its input
    "likelihood": Row("untuned, query likelihood", None, "likelihood", asked=False),
    "direct_asked": Row("direct SFT, before the lists", "direct_asked", "direct", depths=(20,)),
    "chain_asked": Row("chain SFT, before the lists", "chain_asked", "chain", depths=(20,)),
    "direct_lists": Row("direct SFT, lists alone", "direct_lists", "direct", depths=(20,)),
    "direct_orders": Row("direct SFT, orders alone", "direct_orders", "direct", depths=(20,)),
    "direct": Row("direct SFT (RankZephyr's way)", "direct", "direct", twice=True),
    "chain_lists": Row("chain SFT, lists alone", "chain_lists", "chain", depths=(20,)),
    "chain_orders": Row("chain SFT, orders alone", "chain_orders", "chain", depths=(20,)),
    "chain": Row("chain SFT", "chain", "chain", twice=True),
    "dpo": Row("chain SFT + DPO", "dpo", "chain", twice=True),
    "dpo_all": Row("chain SFT + DPO against all that are wrong", "dpo_all", "chain", depths=(20,)),
    "dpo_on_policy": Row("chain SFT + DPO against its own wrong choices", "dpo_on_policy", "chain", depths=(20,)),
    "dpo_replaying": Row("chain SFT + DPO, half of it replay", "dpo_replaying", "chain", depths=(20,)),
    "dpo_forgetful": Row("chain SFT + DPO, without replay", "dpo_forgetful", "chain", depths=(20,)),
    "dpo_alone": Row("chain SFT + DPO, without cross-entropy", "dpo_alone", "chain", depths=(20,)),
    "windows_of_4": Row(
        "chain SFT, sliding windows of 4", "chain", "chain", depths=(20,), lists=("bm25",), asked=False, window=4
    ),
    "windows_of_20": Row(
        "chain SFT, one window of 20", "chain", "chain", depths=(20,), lists=("bm25",), asked=False, window=20
    ),
    "short": Row("chain SFT, 150 steps", "short", "chain", depths=(20,)),
    "forgetful": Row("chain SFT, 150 steps, without replay", "forgetful", "chain", depths=(20,)),
    "unpractised": Row("chain SFT, 150 steps, without pointing practice", "unpractised", "chain", depths=(20,)),
    # What the model and its format can hold.
    "judged": Row(
        "chain SFT, 150 steps more of DL 2021's judgements: an upper bound",
        "judged",
        "chain",
        depths=(20,),
        knows_answers=True,
    ),
    # Whether so few lists can be learned at all: its choice loss tells, no measurement.
    "by_heart": Row("chain SFT, 60 steps more of 16 lists", "by_heart", "chain", depths=(), asked=False),
}


def all_before(training: str) -> set[str]:
    """The trainings and means that come before one."""
    starts = TRAININGS[training].starts
    return set(starts).union(*map(all_before, starts))
