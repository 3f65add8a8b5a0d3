"""Every field of trl.GRPOConfig and what it means under our objective, for the trainer, the recipes and the docs.

Our per-token objective goes through TRL's own loss in the place of the advantages, with TRL's ratio held at 1. What TRL
does to the per-token loss afterwards (masks, weights, the normaliser, entropy) therefore acts on the whole objective;
what it does with its own ratio does nothing, and is refused instead of ignored.

`works` fits the objective. `passes` is handed to TRL and transformers unchanged and is not covered by our tests.
`refused` would be ignored, or would change what is optimised. `python -m rlad.trainer.options` prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# The settings of RLAD Eq. 1 (arXiv 2602.22495, experiments section) where TRL's defaults differ or could drift.
PAPER_DEFAULTS: dict[str, Any] = {
    "loss_type": "grpo",  # TRL: dapo
    "epsilon": 0.2,
    "epsilon_high": 0.28,  # TRL: None, which means epsilon
    "beta": 0.0,
    "use_bias_correction_kl": False,  # TRL: True
    "scale_rewards": "group",
    "num_generations": 8,
    "num_iterations": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "learning_rate": 1e-6,
    "vllm_importance_sampling_correction": True,  # on: vLLM's log-probs are not quite the trained model's
    # TRL: sequence_mask, by which the noise of thousands of tokens adds up and scales a whole response
    "vllm_importance_sampling_mode": "token_truncate",
    "report_to": "none",
}


@dataclass(frozen=True)
class Option:
    """How one GRPOConfig field behaves here. `allowed`: the only values that may be given; None: any that TRL takes."""

    status: Literal["works", "passes", "refused"]
    note: str
    allowed: tuple[Any, ...] | None = None

    def accepts(self, value: Any) -> bool:
        """Whether `value` may be given. True is not 1 here: `allowed` lists both where both are meant."""
        return self.allowed is None or any(value == each and type(value) is type(each) for each in _spellings(self))


def _spellings(option: Option) -> list[Any]:
    """The allowed values, with whole floats as integers too: YAML writes 1 for 1.0."""
    allowed = list(option.allowed or ())
    return allowed + [int(v) for v in allowed if isinstance(v, float) and v.is_integer()]


def _works(note: str, fields: str) -> dict[str, Option]:
    return {name: Option("works", note) for name in fields.split()}


def _passes(note: str, fields: str) -> dict[str, Option]:
    return {name: Option("passes", note) for name in fields.split()}


def _refused(note: str, *allowed: Any, fields: str) -> dict[str, Option]:
    return {name: Option("refused", note, allowed) for name in fields.split()}


_OTHER_DISTRIBUTION = (
    "tokens would be drawn from another distribution than the one that all log-probabilities are of; "
    "it may be set for evaluation"
)
_NEEDS_LOSS = "a parameter of a loss_type that is refused"
_CLIP = "the clip range belongs to the method (method.clip_low, method.clip_high) and must agree with it"

_OBJECTIVE: dict[str, Option] = {
    "loss_type": Option(
        "works",
        "the denominator: grpo (mean over responses of means over tokens, Eq. 1), bnpo, dr_grpo or dapo; cispo, sapo, "
        "vespo and luspo replace the clipped surrogate itself, which here is the method's",
        ("grpo", "bnpo", "dr_grpo", "dapo"),
    ),
    "scale_rewards": Option(
        "works",
        "group (population standard deviation, exactly 0 for a group of equal rewards) or none; batch would scale by "
        "other groups' rewards and is not the advantage of Eq. 1",
        ("group", "none", True, False),
    ),
    **_works(_CLIP, "epsilon epsilon_high"),
    **_works(
        "TRL's k3 of the reference, beside the objective: as a loss its gradient is that of KL(reference, student); "
        "needs use_bias_correction_kl: false",
        "beta",
    ),
    **_works("with beta != 0 it must be false: TRL's ratio is held at 1 here", "use_bias_correction_kl"),
    **_works(
        "a teacher in this process is scored at it too; a served one scores at 1 whatever is asked, and is refused "
        "beside any other",
        "temperature",
    ),
    **_works("masks the whole per-token objective, a distillation term too", "top_entropy_quantile"),
    **_works(
        "truncated responses leave the objective, and the denominator of bnpo and dapo; that of grpo and dr_grpo "
        "counts rollouts, these too",
        "mask_truncated_completions",
    ),
    **_works(
        "entropy bonus beside the objective (Skywork-OR1's adaptive entropy)",
        "entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
    ),
    **_works("weights of several reward functions", "reward_weights"),
    "multi_objective_aggregation": Option(
        "refused", "the advantage is of the weighted sum of rewards, per group", ("sum_then_normalize",)
    ),
    **_refused(
        "sequence-level ratios (GSPO) would average the log-ratio over a response; the methods here are per token",
        "token",
        fields="importance_sampling_level",
    ),
    **_refused("a second clip on TRL's ratio, which is held at 1 here: it would do nothing", None, fields="delta"),
    **_refused(
        "it reads the sign of the advantage and the true old log-probabilities, whose places the objective takes",
        None,
        fields="off_policy_mask_threshold",
    ),
    **_refused(_NEEDS_LOSS, 1.05, fields="sapo_temperature_neg"),
    **_refused(_NEEDS_LOSS, 1.0, fields="sapo_temperature_pos"),
    **_refused(_NEEDS_LOSS, 2.0, fields="vespo_k_pos vespo_lambda_neg"),
    **_refused(_NEEDS_LOSS, 3.0, fields="vespo_lambda_pos vespo_k_neg"),
}

_ROLLOUTS: dict[str, Option] = {
    **_works("group size G", "num_generations"),
    **_works("checkpoints only at the end of a generation batch's use", "num_iterations"),
    **_works(
        "must hold whole groups; checkpoints only at the end of a generation batch's use",
        "generation_batch_size steps_per_generation per_device_train_batch_size gradient_accumulation_steps",
    ),
    **_works("longest response in tokens; also the denominator of dr_grpo", "max_completion_length"),
    **_works("order of the prompts", "shuffle_dataset data_seed"),
    **_works(f"warned about when set: {_OTHER_DISTRIBUTION}", "top_p top_k"),
    **_refused(_OTHER_DISTRIBUTION, 1.0, fields="repetition_penalty"),
    **_refused(_OTHER_DISTRIBUTION, None, 0.0, fields="min_p"),
    **_refused(_OTHER_DISTRIBUTION, None, fields="vllm_structured_outputs_regex"),
    **_passes("keys that leave the sampled distribution alone; others are refused", "generation_kwargs"),
    **_passes("generation by transformers", "cache_implementation ds3_gather_for_generation"),
    **_passes("trim_padding cuts it off again: it needs trim_padding: false", "pad_to_multiple_of"),
    **_passes("the same text reaches student and teacher", "chat_template_kwargs"),
    **_passes("only with tools, which a recipe cannot name", "max_tool_calling_iterations"),
    **_passes(
        "transformers' continuous batching",
        "use_transformers_continuous_batching transformers_continuous_batching_config",
    ),
    **_passes(
        "generation by vLLM, which must be installed; evaluations go through it too",
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
        "vllm_max_model_length vllm_tensor_parallel_size",
    ),
    **_passes(
        "with vLLM the whole per-token objective, a distillation term too, is weighted by old policy / vLLM",
        "vllm_importance_sampling_correction vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min",
    ),
    **_passes(
        "token_truncate: that weight is each token's own; TRL's sequence_mask weighs a response by the product of all, "
        "whose median is 0.002 for 30,720 tokens with independent errors of 0.02 nats: exp(-n sd^2 / 2)",
        "vllm_importance_sampling_mode",
    ),
    **_refused("deprecated in TRL: use use_transformers_continuous_batching", False, fields="use_transformers_paged"),
    **_refused("deprecated in TRL: use vllm_importance_sampling_clip_max", None, fields="vllm_importance_sampling_cap"),
}

_MODEL: dict[str, Option] = {
    **_works("no dropout in student and reference", "disable_dropout"),
    **_works("precision, memory and device", "bf16 fp16 gradient_checkpointing activation_checkpointing use_cpu"),
    **_passes(
        "memory and speed of the student",
        "activation_checkpointing_kwargs gradient_checkpointing_kwargs torch_compile torch_compile_backend "
        "torch_compile_mode tf32 bf16_full_eval fp16_full_eval use_cache torch_empty_cache_steps",
    ),
    **_passes("loading of the student", "model_init_kwargs trust_remote_code"),
    **_passes("the student's head alone; the teacher keeps its own precision", "cast_lm_head_to_fp32"),
    **_passes("load-balancing loss of mixtures of experts, beside the objective", "router_aux_loss_coef"),
    **_passes("needs beta != 0", "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"),
    **_refused(
        "deprecated in TRL, and not tested here; kernels go through model_init_kwargs: {use_kernels: true}",
        False,
        fields="use_liger_kernel",
    ),
    **_refused("only with use_liger_kernel", None, fields="liger_kernel_config"),
    **_refused(
        "noise in the embeddings changes the student's log-probabilities between generation and update",
        None,
        fields="neftune_noise_alpha",
    ),
}

_RUN: dict[str, Option] = {
    **_works(
        "optimiser and its schedule",
        "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim weight_decay adam_beta1 adam_beta2 "
        "adam_epsilon max_grad_norm max_steps num_train_epochs",
    ),
    **_passes("arguments of the optimiser", "optim_args optim_target_modules"),
    **_works(
        "checkpoints only where no generation batch is half used: a multiple is asked for",
        "save_strategy save_steps save_total_limit",
    ),
    **_works("as in transformers", "output_dir seed logging_strategy logging_first_step report_to"),
    **_works("as in transformers (10); 1 in a recipe", "logging_steps"),
    **_passes(
        "logging",
        "log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica "
        "disable_tqdm run_name project trackio_space_id trackio_bucket_id trackio_static_space_id log_completions "
        "log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo debug skip_memory_metrics",
    ),
    **_passes(
        "TRL's own evaluation, when an eval_dataset is given",
        "eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start "
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics "
        "num_generations_eval load_best_model_at_end metric_for_best_model greater_is_better",
    ),
    **_passes(
        "uploading to the Hub",
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
    ),
    **_passes(
        "how the prompts are loaded",
        "accelerator_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
        "dataloader_in_order label_names length_column_name",
    ),
    **_passes(
        "several processes or machines",
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend "
        "fsdp fsdp_config deepspeed local_rank average_tokens_across_devices save_on_each_node parallelism_config",
    ),
    **_passes("seconds, 1,800; 7,200 in a recipe, where processes wait for the one that evaluates", "ddp_timeout"),
    **_passes("as in transformers", "restore_callback_states_from_checkpoint full_determinism"),
    **_passes("read by launch scripts only", "do_train do_eval do_predict"),
    **_refused("GRPO has no labels to smooth: it would do nothing", 0.0, fields="label_smoothing_factor"),
    **_refused("the scorer needs the other columns of the dataset", False, None, fields="remove_unused_columns"),
    **_refused(
        "GRPO has a sampler of its own: it would do nothing",
        "random",
        fields="train_sampling_strategy",
    ),
    **_refused("a smaller batch would split groups; TRL refuses it too", False, fields="auto_find_batch_size"),
    **_refused("a run could not go on from a checkpoint without optimiser state", False, fields="save_only_model"),
    **_refused("a run that goes on would see its prompts again", False, fields="ignore_data_skip"),
    **_refused("it would save in the middle of a generation batch", False, fields="enable_jit_checkpoint"),
    **_refused("use --resume, or trainer.train(resume_from_checkpoint=...)", None, fields="resume_from_checkpoint"),
}

OPTIONS: dict[str, Option] = {**_OBJECTIVE, **_ROLLOUTS, **_MODEL, **_RUN}

# generation_kwargs override the fields above without a word, so they meet the same rule; these values change nothing.
_SAMPLING_KWARGS: dict[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "top_p": (1, 1.0),
    "top_k": (0, None),
    "min_p": (None, 0, 0.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "temperature": (),
    "suppress_tokens": (None,),
    "bad_words_ids": (None,),
    "logits_processor": (None,),
    "sequence_bias": (None,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
}
# Those that leave the distribution alone, of transformers and of vLLM: how it is computed, what else is returned, where
# a response ends.
_OTHER_KWARGS = frozenset(
    "renormalize_logits use_cache cache_config cache_implementation prefill_chunk_size disable_compile compile_config "
    "seed stop stop_strings stop_token_ids include_stop_str_in_output detokenize skip_special_tokens "
    "spaces_between_special_tokens".split()
)
# Those that forbid a response to end before so many tokens, which timings want: allowed, and warned about.
_LONGER = ("min_new_tokens", "min_tokens")
# Methods whose teacher teaches in a group of equal rewards too, though not in all of them.
_TEACH_WITHOUT_REWARD = ("opd", "opd-then-grpo", "kdrl", "kdrl-annealed", "kdrl-mask", "srpo")


def refusals(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One sentence for each of `values` (GRPOConfig fields) that the table refuses; empty when there is none.

    prefix: what the fields are called by, "trainer." in a recipe. Fields that are not in the table are passed over.
    """
    problems = []
    for name, value in values.items():
        option = OPTIONS.get(name)
        if option is not None and not option.accepts(value):
            allowed = " or ".join(_yaml(v) for v in dict.fromkeys(option.allowed or ()))
            problems.append(f"{prefix}{name}: {_yaml(value)} is refused: {option.note}. Allowed: {allowed}")
    extra = values.get("generation_kwargs")
    if isinstance(extra, str):
        problems.append(f"{prefix}generation_kwargs: give a mapping, not a text, so that it can be checked")
    for name, value in extra.items() if isinstance(extra, Mapping) else ():
        where = f"{prefix}generation_kwargs.{name}"
        if name in _SAMPLING_KWARGS:
            if value not in _SAMPLING_KWARGS[name]:
                problems.append(f"{where}: {_yaml(value)} is refused: {_OTHER_DISTRIBUTION}")
        elif name not in _OTHER_KWARGS and name not in _LONGER:
            problems.append(
                f"{where}: is refused: it is not known to leave the sampled distribution alone. Allowed: "
                f"{', '.join(sorted({*_OTHER_KWARGS, *_LONGER}))}"
            )
    return problems


def cautions(values: Mapping[str, Any], method: str, prefix: str = "") -> list[str]:
    """One sentence for each of `values` that is allowed and rarely meant.

    method: its name. prefix: as in `refusals`.
    """
    cut = (("top_p", (1, 1.0)), ("top_k", (0, None)))
    found = [
        f"{prefix}{name}: {_yaml(values[name])}: {_OTHER_DISTRIBUTION}"
        for name, plain in cut
        if name in values and values[name] not in plain
    ]
    extra = values.get("generation_kwargs")
    found += [
        f"{prefix}generation_kwargs.{name}: {extra[name]}: no response ends before, but the log-probabilities are of "
        "those that may: it is for timings"
        for name in _LONGER
        if isinstance(extra, Mapping) and extra.get(name)
    ]
    if values.get("groups") == "refill" and method in _TEACH_WITHOUT_REWARD:
        found.append(
            f"{prefix}groups: refill drops groups of equal rewards, and {method} learns from its teacher in those too: "
            "keep leaves them in"
        )
    return found


def _yaml(value: Any) -> str:
    """A value as a recipe writes it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)


def markdown() -> str:
    """The table for the documentation: option, status, values, what to know."""
    lines = ["| option | status | values | what to know |", "|---|---|---|---|"]
    for name, option in sorted(OPTIONS.items()):
        values = ", ".join(f"`{_yaml(v)}`" for v in option.allowed) if option.allowed is not None else "any"
        lines.append(f"| `{name}` | {option.status} | {values} | {option.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
