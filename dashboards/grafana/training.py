"""The board Training: what each stage at work learns, how fast, when it is done, and what its devices do meanwhile."""

from __future__ import annotations

from dashboards.grafana.panels import Board, Panel, Row

CHOSEN = '{recipe=~"$recipe",stage=~"$stage"}'
NAMED = "{{recipe}} {{stage}} {{run}}"
GPU = "a GPU that NVML knows, and `pip install modelyard[gpu]`"
GPU_NAMED = "{{instance}} GPU {{device}}"


def of(metric: str) -> tuple[tuple[str, str], ...]:
    """One metric of the stages that the reader chose."""
    return ((metric + CHOSEN, NAMED),)


BOARD = Board(
    name="training",
    title="Modelyard: Training",
    about="What every stage at work learns, how fast, and when it is done. A stage is here while MLflow has it as running.",
    variables={"recipe": "modelyard_stage_began_timestamp_seconds", "stage": "modelyard_stage_began_timestamp_seconds"},
    rows=(
        Row("At work", (
            Panel("Stages at work", "Stages that MLflow has as running.", (("count(modelyard_stage_began_timestamp_seconds) or vector(0)", ""),), kind="number", width=4),
            Panel("Tokens a second", "All training stages together.", ((f"sum(modelyard_training_tokens_per_second{CHOSEN})", ""),), kind="number", width=4),
            Panel("Heard of last", "How long ago the stage that is silent longest was heard of. Its machine speaks every ten seconds: minutes mean that its process is gone or hangs.",
                  ((f"max(time() - modelyard_stage_heard_timestamp_seconds{CHOSEN})", ""),), unit="s", kind="number", width=4, limits=(120, 300)),
            Panel("Done", "Steps done of all steps to do (iterations, for alignment).", ((f"modelyard_training_step{CHOSEN} / modelyard_training_steps", NAMED),), unit="percentunit", kind="bars", width=6),
            Panel("Time left", "At the speed of the last ten minutes. What comes after the last step (held-out loss, writing the model) is not in it.",
                  of("modelyard:training_left_seconds"), unit="s", kind="bars", width=6),
        )),
        Row("What is learnt", (
            Panel("Loss", "Of the last step that was logged.", of("modelyard_training_loss")),
            Panel("Held-out loss", "On data that is never trained on.", of("modelyard_training_heldout_loss"), needs="validate_every_steps in the stage's section"),
            Panel("Gradient norm", "Before clipping. Orders of magnitude above its usual are the first sign of a divergence.", of("modelyard_training_grad_norm"), logarithmic=True),
            Panel("Learning rate", "Of the first parameter group.", of("modelyard_training_learning_rate")),
            Panel("Reward and KL", "Of alignment: mean reward of the answers, and how far the policy has gone from where it began. Reward that rises with KL out of bounds is gamed.",
                  ((f"modelyard_training_reward{CHOSEN}", f"reward {NAMED}"), (f"modelyard_training_kl{CHOSEN}", f"KL {NAMED}"))),
            Panel("Pairs ordered rightly", "Of reward models: share of pairs of the batch that are ordered as people ordered them.", of("modelyard_training_accuracy"), unit="percentunit"),
        )),
        Row("Speed", (
            Panel("Tokens a second", "Of each stage, beside the median of its last two hours.",
                  ((f"modelyard_training_tokens_per_second{CHOSEN}", NAMED), (f"modelyard:training_tokens_per_second:median2h{CHOSEN}", f"median of {NAMED}"))),
            Panel("Share of the devices' peak", "Arithmetic that the model needs, done a second, of what the devices could do at most (MFU).", of("modelyard_training_share_of_peak"), unit="percentunit"),
            Panel("Steps left out", "Steps that were skipped because of a spike of the loss or the gradient.", of("modelyard_training_steps_left_out")),
            Panel("Tokens read", "Since the stage's first step.", of("modelyard_training_tokens")),
            Panel("Memory of the stage", "Of its processes, without what is on GPUs.", of("modelyard_stage_memory_bytes"), unit="bytes"),
            Panel("Its machine's processor", "All programs together, as the stage saw it.", of("modelyard_stage_machine_cpu_share"), unit="percentunit"),
        )),
        Row("Devices", (
            Panel("GPU at work", "Share of the time in which a kernel ran. Red where a stage holds the GPU and it idles: see the alert ModelyardGpuIdle.",
                  (("modelyard_gpu_busy_share", GPU_NAMED),), unit="percentunit", width=6, needs=GPU),
            Panel("GPU memory", "Taken, of what the device has.", (("modelyard_gpu_memory_used_bytes / modelyard_gpu_memory_bytes", GPU_NAMED),), unit="percentunit", width=6, needs=GPU),
            Panel("GPU power", "Drawn, and what it may draw at most.",
                  (("modelyard_gpu_power_watts", GPU_NAMED), ("modelyard_gpu_power_limit_watts", f"limit of {GPU_NAMED}")), unit="watt", width=6, needs=GPU),
            Panel("GPU temperature", "Of the die. Devices slow down by themselves from about 85 degrees.", (("modelyard_gpu_temperature_celsius", GPU_NAMED),), unit="celsius", width=6, limits=(80, 90), needs=GPU),
            Panel("Slots held", "Which GPUs and shares of the processor a stage's process holds now.", (("modelyard_device_held", "{{instance}} {{kind}} {{device}}"),), kind="states", width=8),
            Panel("Processor", "Of the machines that run an exporter.", (("modelyard_machine_cpu_share", "{{instance}}"),), unit="percentunit"),
            Panel("Memory", "Held by programs, of what the machine has.", (("modelyard_machine_memory_used_bytes / modelyard_machine_memory_bytes", "{{instance}}"),), unit="percentunit", limits=(0.85, 0.95)),
        )),
    ),
)  # fmt: skip
