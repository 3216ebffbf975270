"""Break the package in small ways, each alone, and see the test fail that is to notice.

    python tests/mutations.py                 # all: more than an hour
    python tests/mutations.py -k precision    # those whose file, text or test has this word in it
    python tests/mutations.py --dry-run       # which of them no longer apply, in no time

Every change is made in a temporary copy of the repository. A text that is no longer there, or more than once, "does not
apply" and wants an update here. The exit status is 0 only if every change was caught.
"""

import argparse
import compileall
import dataclasses
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LONGEST = 600.0  # Seconds; tests whose processes may wait for each other for ever have an alarm themselves.


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change that a test must notice.

    Attributes:
        file: within the package; of pages "docs/<name>.md".
        old: text that the file has once.
        new: what to put in its place.
        test: the id of the test in tests/, without or with parameters.
    """

    file: str
    old: str
    new: str
    test: str

    @property
    def path(self) -> str:
        return self.file if self.file.startswith("docs/") else f"helios_lite/{self.file}"


RESUME = "training/test_resume.py::"
ANY_CUT = RESUME + "test_a_run_cut_after_any_step_ends_like_one_that_was_not"
BEST_METRICS = RESUME + "test_the_metrics_of_the_best_validation_survive_a_resume"
WORKERS = RESUME + "test_the_number_of_workers_may_change_at_a_resume"
OTHER_HPARAMS = RESUME + "test_a_model_with_other_hparams_does_not_become_the_one_in_the_run_folder"
SAME_HPARAMS = RESUME + "test_hparams_that_are_equal_stay_equal_when_they_are_saved_and_loaded"
DIFFERENT_HPARAMS = RESUME + "test_hparams_of_another_value_differ"
GOING_BACK = RESUME + "test_going_back_to_the_best_sets_the_newer_checkpoints_and_their_rows_aside"
ON_DEVICE = RESUME + "test_optimizers_count_on_the_cpu_after_a_resume_on_a_device_and_other_tensors_are_there"
OUTPUT = "display/test_output.py::test_a_run_ends_as_it_must_whatever_its_output_is"
FILE_SYSTEMS = "checkpoints/test_file_systems.py"
OF_OTHERS = "checkpoints/test_files_of_others.py::"
ESCAPES = OF_OTHERS + "test_escape_sequences_in_the_files_of_others_never_reach_a_terminal"
PLACES = "metrics/test_rows.py::test_a_file_without_that_row_is_read_from_its_start"
AFTER_PLACE = "metrics/test_rows.py::test_only_what_follows_the_last_row_of_a_checkpoint_is_read"
ENCODED_ONCE = "checkpoints/test_folder.py::test_an_entry_of_the_manifest_is_encoded_once_however_many_there_are"
FIRST_MOMENT = "processes/test_forkserver.py::test_a_signal_in_the_first_moment_of_a_process_ends_it"
NOT_TAKEN = (
    "processes/test_signals.py::"
    "test_a_batch_that_a_signal_keeps_from_being_taken_is_no_error_of_the_process_that_has_loaded_it"
)
FEW_CALLS = "checkpoints/test_folder.py::test_a_save_makes_a_few_calls_more_for_each_checkpoint_however_many_there_are"
BY_BLOCKS = (
    "processes/test_launch.py::test_a_network_compiled_by_blocks_learns_the_same_and_its_checkpoint_needs_no_compiler"
)
RESTART = "checkpoints/test_compiled.py::test_a_restart_takes_what_the_first_start_has_compiled_and_no_file_of_others"
HANDLERS = (
    "processes/test_clusters.py::test_a_handler_that_was_there_before_is_called_when_the_training_has_done_its_part"
)
TRAINS_ALONE = (
    "processes/test_clusters.py::test_a_job_of_several_tasks_or_machines_in_which_a_program_trains_alone_gets_a_warning"
)
ENDS = "training/test_ends.py::"
ORDERS = "processes/test_random_order.py::"
GONE_OF_ORDER = ORDERS + "test_numbers_that_are_gone_are_left_out_of_the_rest_of_an_order_alone"
NO_PATTERN = ORDERS + "test_over_a_thousand_seeds_no_place_prefers_a_number_and_no_number_a_neighbour"
ONCE = ORDERS + "test_every_number_comes_once"
STORED_ORDER = ORDERS + "test_an_order_is_the_same_with_every_version"
FEW_BLOCKS = ORDERS + "test_samples_that_are_read_near_each_other_are_in_few_blocks"
RANDPERM = ORDERS + "test_below_two_to_the_24_the_order_without_blocks_is_that_of_randperm"
SLICES = ORDERS + "test_slices_parts_and_iteration_agree_with_the_whole"
BEGUN_BLOCKS = ORDERS + "test_a_resumed_epoch_goes_on_with_the_blocks_and_the_length_it_began_with"
BILLIONS = ORDERS + "test_ten_billion_samples_are_shuffled_resumed_and_shared_without_memory_for_their_order"
ATTRIBUTES = "training/test_state_attributes.py::"
FROM_LIGHTNING = "test_from_lightning.py::test_every_name_on_the_right_is_there_and_in_the_program"
FROM_LIGHTNING_ANSWERS = "test_from_lightning.py::test_what_is_spelled_as_in_lightning_is_answered_as_the_row_says"
SEVERAL = "loading/test_several_splits.py::"
SEVERAL_ENDS = SEVERAL + "test_the_shortest_split_or_the_named_one_ends_the_epoch_and_the_others_go_on_and_begin_again"
LIMIT_OF_ZERO = "loading/test_limits.py::test_a_limit_of_zero_turns_a_split_off"
GRADIENTS = "networks/test_gradients.py::"
REQUESTS = "training/test_requests.py::"
MONITORED = "training/test_monitored_training.py::"
STATES = "training/test_states.py::"
WRAPPERS = "training/test_nested_optimizers.py::"
INNER = WRAPPERS + "test_an_optimizer_in_a_network_or_in_another_one_goes_on_after_a_resume"
WRAPPED = WRAPPERS + "test_what_is_wrapped_is_no_second_optimizer_for_rows_and_changes"
NOT_HELD = WRAPPERS + "test_an_optimizer_that_no_checkpoint_holds_is_named"
HELD_OTHERWISE = WRAPPERS + "test_an_optimizer_that_is_held_otherwise_or_ends_with_its_step_is_no_error"
ADDED = "training/test_added_groups.py::"
ADDED_ANYWHERE = ADDED + "test_a_group_that_is_added_anywhere_is_there_after_every_cut"
NOT_AGAIN = ADDED + "test_what_cannot_be_made_again_is_said_when_it_happens"
ORDER = "loading/test_custom_order.py::"
KEPT_ORDER = ORDER + "test_an_order_that_is_drawn_when_an_epoch_begins_is_kept"
DRAWN_LATER = ORDER + "test_an_order_that_is_drawn_between_the_numbers_of_the_training_is_a_warning"
PLANTED_CAUSES = "tools/test_planted_differences.py::test_each_planted_difference_is_named"
LOCKED = "tools/test_lock.py::test_"
CONSOLIDATED = "checkpoints/test_sharded.py::test_one_process_consolidates_inspects_tests_and_loads_a_folder"
WORST = "calls/test_replay.py::test_the_worst_step_is_that_with_the_highest_loss_of_all"
RECORDED = "calls/test_replay.py::test_what_differs_from_a_row_of_the_run_is_named"
DIGESTED = "metrics/test_digests.py::"
DEFINED_DIGEST = DIGESTED + "test_a_digest_is_what_its_definition_says_in_blocks_and_in_parts_of_them"
SEEN_BITS = DIGESTED + "test_a_digest_tells_what_differs_in_a_bit_in_two_signs_or_in_the_order"
CUT_BETWEEN_ROWS = DIGESTED + "test_a_run_that_was_cut_between_two_rows_has_the_same_rows"
ROW_DIGESTS = DIGESTED + "test_a_row_has_the_digests_of_its_samples_its_last_batch_and_its_weights"
NAMED_STATE = STATES + "test_a_value_that_no_checkpoint_can_hold_is_named_before_the_first_step"
OF_STATE = STATES + "test_wherever_it_is_it_is_named_before_the_first_step"
CLAIMING = "calls/test_claiming.py::"
MOVED = "calls/test_working_directory.py::test_all_files_of_a_call_are_where_it_began_wherever_its_hooks_go"
OBJECTS = "metrics/test_metric_objects.py::"
DISTRIBUTED_OBJECTS = "networks/test_distributed.py::test_two_ranks_compute_what_one_computes_over_the_samples_of_both"
INITIAL = "training/test_initial_weights.py::"
MODEL = "test_model.py::"
CHANGED = "training/test_changed_numbers.py::"
PLAN = "training/test_plan.py::"
REPRS = "test_reprs.py::"
TRACEBACKS = "calls/test_tracebacks.py::test_"
SHORT = TRACEBACKS + "at_most_three_functions_of_the_package_stand_before_a_line_of_the_users"
READING = "planning/test_schedule_reading.py::"
DATA = "training/test_changed_data.py::"
GLOBAL = "loading/test_global_batch_size.py::"
AS_IT_BEGAN = DATA + "test_an_epoch_that_has_begun_is_finished_as_it_began_at_every_position"
PASS_AS_IT_BEGAN = DATA + "test_a_pass_that_has_begun_is_finished_as_it_began_at_every_position"
NO_ORDER = DATA + "test_an_order_that_cannot_be_made_again_is_an_error_until_it_is_put_back"
SAID_ONCE = DATA + "test_a_resume_says_once_what_differs"
STAYS_GONE = DATA + "test_what_is_gone_stays_gone_when_the_epoch_is_stopped_again"
LETTERS = DATA + "test_an_order_that_is_not_of_integers_is_compared_by_the_class_of_its_sampler_only"
OTHER_KIND = DATA + "test_a_split_of_another_kind_waits_for_the_end_of_the_epoch_where_positions_would_differ"
PASS_IS_NAMED = DATA + "test_of_passes_the_pass_is_named"
NO_MORE_PASSES = DATA + "test_epochs_of_steps_that_are_not_wanted_any_more_end_first"
SITUATIONS = "networks/test_situations.py::"
LIMITS = "loading/test_limits.py::"
FIRST_BATCHES = LIMITS + "test_a_limited_epoch_has_the_first_batches"
LAST_WINDOW = LIMITS + "test_the_last_window_of_a_limited_epoch_is_complete"
OVERFITTING = LIMITS + "test_overfitting_repeats_the_first_batches_bit_for_bit_and_validates_as_many"
SAID_TO_BE_LIMITED = LIMITS + "test_a_test_is_limited_and_tables_and_logs_say_what_is"
PREDICTION = "calls/test_predict.py::"
PREDICTED_FILE = PREDICTION + "test_a_file_has_all_outputs_and_their_indices"
BETWEEN = PREDICTION + "test_nothing_of_a_prediction_is_seen_by_the_code_between_its_outputs"
TAKES_NO_MORE = PREDICTION + "test_a_caller_that_takes_no_more_ends_the_prediction"
NO_PREDICTION = PREDICTION + "test_what_cannot_be_predicted_is_an_error_that_says_what_to_do"
NO_FILE = PREDICTION + "test_what_a_file_cannot_hold_is_named_and_leaves_the_earlier_file"
AS_ONE = PREDICTION + "test_launched_processes_write_the_file_of_one_process"
WAITS = PREDICTION + "test_launched_processes_wait_for_the_caller_and_end_with_it"
LOADERS = "loading/test_loaders.py::"
MAPS = "processes/test_memory_maps.py::test_a_memory_map_is_sent_as_its_place_in_the_file"
MAPS_COPIED = "processes/test_memory_maps.py::test_what_is_not_in_a_file_any_more_is_sent_as_a_copy"
MAPS_OF_WORKERS = (
    "processes/test_memory_maps.py::test_workers_get_the_place_too_and_other_processes_of_the_program_are_left_alone"
)
MAPS_SENT = "processes/test_launch.py::test_a_caller_reads_from_the_model_what_it_could_read_after_one_process"
FEWER = LOADERS + "test_an_epoch_that_gives_fewer_batches_than_its_plan_is_an_error_that_says_how_many"
TRAINING = "training/test_loop.py::"
LEARNING_RATES = "metrics/test_learning_rates.py::"
RATES = LEARNING_RATES + "test_a_row_has_the_rate_that_its_step_used"
ROWS = TRAINING + "test_rows_are_written_at_log_points_validations_and_epoch_ends"
UNKNOWN_END = LEARNING_RATES + "test_a_custom_loader_whose_end_is_not_known_has_the_same_rows"
RESUMED_TIMES = TRAINING + "test_the_times_of_a_resumed_row_and_epoch_have_what_was_done_before"
INERT = TRAINING + "test_validation_does_not_change_one_bit_of_the_training"
PROCESS_METRICS = "training/test_process_metrics.py::"
CALLBACKS_SEE = PROCESS_METRICS + "test_callbacks_see_what_was_added_before_and_change_nothing_but_by_what_they_return"
ADDED_EVERYWHERE = PROCESS_METRICS + "test_what_is_added_is_monitored_and_is_wherever_metrics_are"
CONSOLE = "display/test_console.py::"
BAR_METRICS = CONSOLE + "test_in_a_terminal_the_bar_shows_the_metrics_that_ask_for_it_as_they_are_in_the_last_row"
RUNNING_LOSSES = "networks/test_distributed.py::test_running_losses_are_those_of_one_process_with_the_double_batch"
INTERRUPTS = "training/test_interrupts.py::"
AN_EXCEPTION = INTERRUPTS + "test_an_exception_ends_a_program_with_loading_processes_at_once"
A_SIGNAL = INTERRUPTS + "test_a_signal_finishes_the_step_saves_tears_down_and_ends"
PASS_OVER = INTERRUPTS + "test_fit_and_test_pass_over_a_bad_file_with_a_warning_that_names_it"
NOT_REPLACED = INTERRUPTS + "test_a_checkpoint_of_a_newer_format_is_not_passed_over_or_replaced"
PASSES = "loading/test_passes.py::"
FOLDER = "checkpoints/test_folder.py::"
LAUNCH = "processes/test_launch.py::"
BY_SIGTERM = LAUNCH + "test_a_sigterm_while_processes_are_starting_ends_them_without_a_restart"
STATUS = "training/test_status.py::"
LATE_SIGNAL = "test_a_signal_that_comes_while_the_end_is_written_is_the_end"
DEAD = STATUS + "test_a_killed_run_is_said_to_be_dead"
DOING = STATUS + "test_it_says_what_the_run_is_doing_and_how_it_has_ended"
WHY_ENDED = STATUS + "test_it_says_why_a_run_was_ended"
UNWRITABLE_STATUS = STATUS + "test_a_file_that_cannot_be_written_is_one_warning"
SERVER_DIES = LAUNCH + "test_the_death_of_the_fork_server_changes_nothing"
SERVER = "processes/test_forkserver.py::"
WINDOWS = "training/test_windows.py::"
LEFT_OUT = WINDOWS + "test_a_window_whose_last_batch_does_not_step_is_dropped"
MIXED = WINDOWS + "test_losses_with_a_weight_and_without_are_an_error_in_a_step_of_several_batches"
NO_ITEMS = WINDOWS + "test_a_loss_over_no_items_counts_nothing_and_a_window_of_them_is_no_step"
LEAVES = "calls/test_leaves_nothing_behind.py::"
LEAVES_SUCCESS = LEAVES + "test_nothing_is_left_after_success"
LEAVES_ENDED = LEAVES + "test_nothing_is_left_after_an_exception_in_any_hook"
EPOCH_VALUES = "training/test_epoch_values.py::"
START_VALUES = EPOCH_VALUES + "test_values_of_the_start_count_once_over_a_resume"
EVALUATION_FAILS = "test_callbacks.py::test_an_exception_in_an_evaluation_leaves_the_weights_and_modes_of_the_training"
OTHER_AVERAGE = "test_callbacks.py::test_the_average_of_one_model_is_not_that_of_another"
SINGLE = "test_callbacks.py::test_a_single_activation_has_no_deviation_and_an_exception_removes_the_hooks"
OF_OPTIMIZER = "test_works_with.py::test_what_was_validated_with_the_weights_of_an_optimizer_is_tested_and_loaded"
UNCHANGED_BY = "test_works_with.py::test_validations_and_saves_do_not_change_a_training_with_such_an_optimizer"
TOLD = "loading/test_loaders.py::test_a_dataset_of_a_split_is_told_every_epoch"
NUM_SAMPLES = (
    "loading/test_loaders.py::test_a_batch_whose_number_of_samples_is_not_known_is_an_error_that_says_what_to_override"
)
KNOWN_SAMPLES = "loading/test_loaders.py::test_a_split_and_a_stock_dataloader_know_the_number_of_samples"
SCORES = "training/test_loop.py::test_a_score_that_is_not_finite_is_no_improvement_and_is_warned_of_once"
COPIES = SERVER + "test_launched_processes_are_as_new_interpreters_but_import_nothing_anew"
OWN_SERVER = SERVER + "test_a_fork_server_of_the_program_is_left_alone"
FORKED = SERVER + "test_a_process_that_was_forked_launches_as_its_parent_does"
TROUBLE = LAUNCH + "test_the_trouble_of_one_rank_ends_all_within_ten_seconds_and_reaches_the_caller"
FAILURES = "processes/test_failures.py::test_trouble_ends_the_run_within_ten_seconds_with_the_error_of_its_rank"
ALONE = "processes/test_failures.py::test_a_signal_that_ends_one_process_alone_ends_the_others"
AS_AFTER_ONE_PROCESS = LAUNCH + "test_a_caller_reads_from_the_model_what_it_could_read_after_one_process"
CTRL_C_UNDER_TORCHRUN = LAUNCH + "test_ctrl_c_under_torchrun_saves_and_prints_its_lines_once"
CANNOT_BE_SENT = LAUNCH + "test_what_cannot_be_sent_is_named_before_anything_is_started"
SIGTERM = LAUNCH + "test_a_sigterm_to_the_parent_or_to_one_rank_saves_and_ends_all"
DISTRIBUTED = "networks/test_distributed.py::"
SPEED = "display/test_lines.py::test_the_wait_for_data_and_the_samples_per_second_are_those_since_the_last_row"
EPOCH_MEANS = "display/test_lines.py::test_the_last_row_of_an_epoch_has_its_exact_means"
SAME_MEANS = "display/test_lines.py::test_a_resume_inside_an_epoch_gives_the_same_means"
FINISHED_PART = "display/test_lines.py::test_the_finished_part_is_that_of_the_limit_that_comes_first"
COLUMNS_BELOW = "display/test_lines.py::test_the_lines_of_epochs_have_their_columns_below_each_other"
LONG_EPOCHS = "display/test_lines.py::test_without_a_terminal_long_epochs_have_a_line_every_half_a_minute"
TOO_LONG = "display/test_lines.py::test_a_line_that_is_too_long_loses_its_last_metrics_but_not_the_monitored_one"
MISTAKES = "training/test_likely_mistakes.py::"
SIGNALS = "processes/test_signals.py::"
AT_ONCE = SIGNALS + "test_outside_of_a_training_a_signal_ends_any_call_at_once_and_sigusr1_only_if_it_stops"
DROPPED = SIGNALS + "test_a_program_that_drops_the_exception_is_ended_nevertheless"
IN_DEL = SIGNALS + "test_a_signal_in_a_place_whose_exceptions_python_drops_waits_until_it_is_over"
CLUSTERS = "processes/test_clusters.py::"
ANY_CALL = CLUSTERS + "test_sigusr1_outside_of_the_training_does_nothing_in_any_call"
LAUNCHED_REPLAY = "calls/test_replay.py::test_launched_processes_replay_a_step_or_its_cause_and_their_weights_come_back"
HANGS = "processes/test_hangs.py::"
GROUP_LIMITS = HANGS + "test_while_it_is_watched_ranks_wait_without_the_limit_of_pytorch_and_with_one_of_their_own"
HELD = HANGS + "test_a_rank_that_has_failed_is_not_held_by_the_destruction_of_process_groups"
DIFF = "tools/test_diff.py::test_a_planted_difference_is_named"
RUNS = "tools/test_runs.py::"
REPORT = "tools/test_report.py::"
VERIFIED = "training/test_step_verifier.py::"
VERIFIED_BITS = VERIFIED + "test_a_training_has_the_same_bits_whichever_steps_are_verified"
ONE_UPDATE, TWO_UPDATES = VERIFIED_BITS + "[one update]", VERIFIED_BITS + "[several updates]"
FAULTS = VERIFIED + "test_a_difference_names_rank_and_module_before_the_weights_change"
RIGHT_VERIFIED = VERIFIED + "test_a_right_program_is_verified_and_has_the_same_bits"
NOT_VERIFIED = VERIFIED + "test_what_cannot_be_taken_back_is_an_error_in_the_first_step"
COMPUTED_TWICE = VERIFIED + "test_the_first_step_of_a_start_and_every_nth_are_computed_twice"
RANKS_VERIFIED = "networks/test_distributed.py::test_a_verified_step_names_on_every_rank_the_one_that_differs"
SHARDS_VERIFIED = (
    "networks/test_sharded_networks.py::test_a_verified_step_of_shards_has_the_same_bits_and_names_the_rank"
)
VERDICT = "training/test_verdict.py::test_"
WAITED, SLOW = (
    VERDICT + "waiting_for_batches_is_said_with_its_remedy",
    VERDICT + "a_rank_that_waits_for_its_data_more_than_the_others_is_named",
)
GROWS, WORSE = (
    VERDICT + "memory_that_grows_in_nearly_every_row_is_said",
    VERDICT + "a_score_that_ends_below_its_best_by_more_than_its_noise_is_said",
)
UNMOVED = VERDICT + "a_rate_that_never_moves_is_said_of_a_schedule_only"
PLOTTED = "tools/test_command.py::test_plot_draws_evaluations_at_their_step"
REPORT_OF_OTHERS = REPORT + "test_findings_are_status_1_and_nothing_in_a_file_becomes_a_tag"
REPORT_CURVES = REPORT + "test_curves_keep_their_extremes_and_fit_their_picture"
REPORT_FILE = REPORT + "test_it_is_one_accessible_file_without_scripts_and_requests"
COMPARE = "tools/test_compare.py::"
COMPARED = COMPARE + "test_two_programs_are_compared_by_trainings_that_are_kept_and_not_done_again"
NOT_COMPARED = COMPARE + "test_what_cannot_be_compared_is_named_and_nothing_is_trained_for_it"
STOPPED_COMPARISON = COMPARE + "test_a_signal_ends_the_trainings_with_a_checkpoint_before_the_command"
OF_CHANCE = COMPARE + "test_programs_without_a_difference_are_told_apart_in_at_most_five_of_a_hundred_cases"
SIGN_FLIPS = COMPARE + "test_the_sign_flip_test_counts_what_is_as_far_from_zero"
OF_TABLES = COMPARE + "test_the_intervals_and_the_numbers_of_seeds_are_those_of_tables"
RUNS_SORTED = RUNS + "test_it_is_sorted_by_what_is_asked_for_and_a_metric_that_shall_rise_from_its_highest_value"
RUNS_OF_OTHERS = RUNS + "test_files_of_others_neither_end_it_nor_reach_a_terminal_raw"
RUNS_FAILED = RUNS + "test_a_run_that_has_failed_or_is_dead_is_status_1_and_no_run_is_wrong_use"
SHARDED = "checkpoints/test_sharded.py::"
ONE_RANK_CANNOT = "test_a_checkpoint_that_one_rank_alone_cannot_read_is_an_error_on_all"
STAYS_SHARDED = SHARDED + "test_no_rank_makes_more_than_its_part_of_a_tensor_in_a_save_and_in_a_resume"
ANY_NUMBER = "test_any_number_of_processes_restores_what_any_other_has_saved_bit_for_bit"
SHARD_NAMES = "test_the_tensors_are_in_the_shards_once_under_the_names_of_parameters"
ONLY_WHOLE = SHARDED + "test_places_of_anything_but_whole_tensors_in_the_folder_are_refused"
HALF_WRITTEN = "test_a_start_removes_half_written_folders_and_gives_a_replaced_one_its_name_back"
LIKE_ONE = DISTRIBUTED + "test_two_processes_do_what_one_does_with_the_double_batch"
ITS_OWN_GENERATORS = DISTRIBUTED + "test_each_rank_gets_its_generators_back_and_validation_is_inert"
OTHER_SIZE = DISTRIBUTED + "test_the_states_of_loaders_are_not_given_to_another_number_of_ranks"
GO_ON = "test_states_of_any_shape_and_name_go_on_with_their_bits_and_as_those_of_one_process"
CANNOT_STEP = "test_an_optimizer_that_cannot_train_shards_is_an_error_in_words_before_a_step"
NETWORKS = "networks/test_sharded_networks.py::"
ON_META = NETWORKS + "test_a_network_made_on_the_meta_device_has_the_same_initial_values"
RECOMPUTED = NETWORKS + "test_recomputed_activations_do_not_change_one_bit"
FEW_BARS = "display/test_console.py::test_bars_are_drawn_ten_times_a_second_at_most_and_what_is_shorter_has_none"
FEW_ROWS_IN_TRAIN_LOG = "display/test_console.py::test_train_log_has_a_row_a_second_at_most_and_metrics_jsonl_has_all"
IN_BF16 = NETWORKS + "test_sharded_networks_in_bf16_leave_inputs_to_autocast_and_normalize_in_fp32"
SHARED_BY_TWO = NETWORKS + "test_a_parameter_of_two_networks_stays_one_or_is_an_error_that_names_both"
UNFILLED = NETWORKS + "test_a_module_on_the_meta_device_that_cannot_be_filled_is_an_error_that_names_it"
EVERY_KIND = NETWORKS + "test_tensors_of_every_kind_made_on_the_meta_device_are_those_made_without_it"
UNITS = NETWORKS + "test_a_block_of_several_dtypes_is_divided_by_its_submodules_or_is_an_error_that_names_one"
SHARDS = "test_shards_train_what_one_process_trains_or_say_why_not"
OF_PARTS = SITUATIONS + SHARDS + "[TypesOfParts-2-sharded]"
SENT = NETWORKS + "test_a_model_that_was_set_up_here_can_be_sent_to_processes"
BACKWARD_IN_EVALUATION = NETWORKS + "test_a_backward_pass_through_a_sharded_network_in_an_evaluation_is_an_error"
OTHER_BLOCKS = NETWORKS + "test_ranks_that_run_other_blocks_are_an_error_that_names_them_before_a_wrong_step"
MARKED = NETWORKS + "test_attributes_of_parameters_are_kept_and_hooks_that_would_be_dropped_are_an_error"
PRECISION = "networks/test_precision.py::"
TWO_OPTIMIZERS = PRECISION + "test_fp16_with_two_optimizers_under_accumulation_is_the_loop_by_hand"
NORMS = PRECISION + "test_norms_are_those_of_a_loop_by_hand"
NOT_FINITE = PRECISION + "test_a_step_whose_gradients_are_not_finite_is_left_out_and_counted"
COMPLETENESS = "model_internals/test_checks.py::"
CALLBACKS = "test_callbacks.py::"
AVERAGE = CALLBACKS + "test_validations_and_tests_use_the_average_and_training_does_not_notice"
PERIODS = CALLBACKS + "test_periods_limit_the_hooks_of_steps_and_epochs_with_the_same_calls_after_a_resume"
JUDGED = CALLBACKS + "test_the_best_checkpoint_gives_the_average_that_was_validated"
AVERAGE_OF_SHARDS = (
    NETWORKS + "test_an_average_of_a_sharded_network_is_that_of_its_full_weights_and_resumes_with_the_same_bits"
)
PROFILES = CALLBACKS + "test_two_profiles_of_the_same_steps_are_an_error_that_names_them"
DOCS = "test_docs.py::"
SITE = "test_site.py::"
SCHEDULES = "test_schedules.py::"
SAMPLERS = "test_samplers.py::"
LITTLE_PADDING = SAMPLERS + "test_little_is_padded_and_batches_have_other_samples_in_every_epoch"
WAITS_FOR_ONE = "processes/test_signals.py::test_a_rank_that_waits_for_one_that_a_signal_has_ended_ends_too[waits]"
CLOSES = WAITS_FOR_ONE.replace("[waits]", "[closes]")
KEEP_BITS = "training/test_optimizer_states.py::test_states_keep_their_data_types_and_their_bits"
FOLLOW = "training/test_optimizer_states.py::test_states_follow_weights_that_have_another_data_type_now"
CONSECUTIVE = "test_data.py::test_the_batches_of_all_ranks_are_consecutive_parts_of_the_order"
ANY_RANKS = SAMPLERS + "test_any_number_of_ranks_goes_on_from_any_position_with_every_index_once"
FORMULA = SCHEDULES + "test_every_step_has_the_learning_rate_of_the_formula_in_every_group"
PLAIN_SCHEDULER = SCHEDULES + "test_a_scheduler_holds_plain_data_and_can_be_copied_and_sent"
LOGGERS = "test_loggers.py::"
COMMAND = "tools/test_command.py::"
ENDED = LOGGERS + "test_a_logger_is_told_how_the_training_ended"
IMAGES = LOGGERS + "test_tensorboard_shows_images_and_runs_on_rank_0_only"
TENSORBOARD = LOGGERS + "test_tensorboard_has_every_row_once_also_after_a_kill"
GOES_ON = TRAINING + "test_a_training_that_goes_on_after_its_end_is_like_one_that_never_ended"
FINISHED = TRAINING + "test_a_finished_run_that_is_started_again_keeps_its_last_row_and_its_result"
KEPT_ROWS = TRAINING + "test_a_resume_keeps_the_rows_of_evaluations_up_to_its_step"
NOT_CALLED = "test_config.py::test_what_a_key_does_not_stand_for_is_an_error_and_is_not_called"
FUZZ = "training/test_fuzz.py::test_a_random_training_cut_at_random_places_ends_like_one_that_was_not"
EXTREME = "test_options.py::test_an_extreme_value_is_refused_at_once_or_a_run_works_with_it"

UNKNOWN_OPTION = "test_options.py::test_an_unknown_option_is_a_type_error_that_says_what_to_write"
SIGNATURE = (
    "test_options.py::test_the_signature_of_a_trainer_has_types_and_defaults_also_in_a_module_without_their_names"
)
HELP = "test_options.py::test_help_has_every_option_with_its_type_default_and_documentation"
EDITOR = "test_editors.py::test_pyright_shows_the_documentation_of_a_keyword_and_of_an_attribute"
WRONG_KINDS = "test_wrong_kinds.py::test_an_argument_of_a_wrong_kind_is_named"
NO_HANGS = "processes/test_hangs.py::test_a_slow_validation_is_no_hang_and_a_slow_caller_of_predict_is_none"
ARRAYS = "loading/test_loaders.py::test_a_dict_of_arrays_and_memory_maps_is_batched_in_this_process_as_by_workers"
AUDIT = "tools/test_audit.py::test_"
PLANTED = AUDIT + "a_planted_error_breaks_the_relations_that_name_it"
PLANTED_HASHES = AUDIT + "hashes_of_strings_and_the_way_in_which_processes_start_are_those_of_a_new_program"
METHOD = PLANTED_HASHES
NAMED_BATCH = AUDIT + "what_differs_first_is_named"
NOT_JUDGED = AUDIT + "a_program_that_hangs_or_fails_is_not_judged_and_its_error_is_told_once"
TOO_SLOW = AUDIT + "a_training_that_is_too_slow_for_one_relation_breaks_none"
SHARED_TRIALS = AUDIT + "relations_that_look_at_the_same_training_share_it"
NO_MEAN = AUDIT + "a_loss_that_is_none_of_samples_by_intention_is_not_compared_with_theirs"
LOSSES = AUDIT + "losses_that_get_what_they_do_not_want_are_named_and_others_are_not"
BUFFER = AUDIT + "a_buffer_whose_tensors_are_used_again_may_grow"
COUPLED = AUDIT + "a_loss_couples_samples_by_its_form_and_not_by_an_error"
IN_COMMON = AUDIT + "samples_have_in_common_only_what_is_not_by_chance"
LEAVES_OTHERS = AUDIT + "an_error_of_a_relation_leaves_the_others_as_they_are"
BY_INTENTION = AUDIT + "a_break_is_by_intention_if_it_is_accepted_with_what_follows_from_it"
NOTHING_CHECKED = AUDIT + "the_command_takes_a_function_of_a_python_file_and_says_if_nothing_was_checked"
NO_DOUBT = AUDIT + "a_training_ends_before_its_last_step_only_where_there_is_no_doubt"
LEARNED = AUDIT + "a_training_that_only_has_to_learn_ends_when_it_has"
RIGHT = AUDIT + "nothing_breaks_in_a_right_program_and_few_relations_are_left_out"
REPLAY = "calls/test_replay.py::test_"
REPLAYED_AS_IT_WAS = REPLAY + "a_step_is_looked_at_with_the_state_and_the_batch_that_it_had"
NOT_EQUAL = "tools/test_diff.py::test_runs_without_a_common_step_are_not_called_equal"
UNREAD = "tools/test_diff.py::test_a_damaged_checkpoint_is_named_and_all_else_compared"
UNMEASURED = "tools/test_diff.py::test_only_what_the_trainer_measures_is_left_out"
SAMPLES_NOT_KNOWN = "tools/test_diff.py::test_samples_are_not_named_where_it_is_not_known_which_they_were"
REPLAYED = REPLAY + "a_step_of_a_resumed_run_is_computed_again_bit_for_bit_and_no_file_changes"
REPLAYED_AGAIN = REPLAY + "the_model_can_be_replayed_again_and_trained_afterwards"
REPLAYED_NORMS = REPLAY + "norms_rates_and_values_are_those_that_the_run_logs"
NESTED = "test_nested.py"
REPLAYED_STREAM = REPLAY + "a_stream_and_epochs_of_some_steps_are_replayed_too"
TAP = "model_internals/test_step_tap.py::test_"
TAPPED = TAP + "a_tapped_training_has_the_bits_of_another_and_all_its_calls_are_seen"
PROBED = TAP + "a_probe_gives_losses_and_gradients_and_steps_and_logs_nothing"
UNTAPPED = TAP + "a_tap_leaves_nothing_behind"
POISONED = REPLAY + "a_poisoned_sample_is_named_also_by_a_replay_of_a_later_step"
NOT_FINITE_MODULE = REPLAY + "the_first_module_with_an_output_or_gradient_that_is_not_finite_is_named"

EMULATED = "on_emulated_device.py::"
MOVED_BY_DEVICE = "test_batches_of_any_kind_are_moved_without_waiting"
TYPES = "test_types_of_devices_are_those_of_pytorch"
LAUNCHED_LATER = "processes/test_launch.py::test_every_process_trains_its_own_copy_of_a_network_that_was_there_before"
TOO_LATE = "test_what_has_multiplied_matrices_before_cannot_be_deterministic"
NO_FLOAT64 = "test_sums_are_float32_where_the_device_has_no_float64"
ONE_WAIT = "test_a_save_waits_once_and_files_hold_tensors_of_the_cpu"
RESUMED = "test_nothing_waits_after_a_resume_with_any_optimizer_of_pytorch"
BETWEEN_ROWS = "test_nothing_waits_for_the_device_between_rows"
PAUSED = "test_what_the_device_still_has_to_do_is_no_time_of_a_validation"
SLOWER = "test_a_slower_format_than_the_device_has_is_said_once"
REUSED_LOSS = "test_a_validation_may_use_the_memory_of_the_last_loss_before_a_save"
PRODUCTS = "processes/test_devices.py::test_a_program_may_name_the_precision_of_products_by_the_newer_name_of_pytorch"
PINNED = "loading/test_loaders.py::test_batches_of_workers_are_pinned_for_a_device_unless_the_split_says_it"
USED_UP = "model_internals/test_out_of_memory.py"
RANKS_ON_DEVICES = (
    "test_emulated_device.py::test_ranks_train_what_they_train_on_the_cpu_and_are_told_if_they_have_the_same_device"
)
SAME_OBJECTS = EMULATED + "test_parameters_remain_the_same_objects_when_a_network_is_moved"

MUTATIONS = [
    # What does not grow with the run.
    Mutation("metrics/rows.py", "zlib.crc32(file.read(self.size)) == self.checksum", "True", PLACES),
    Mutation("metrics/rows.py", "place.end, rows)", "0, 0)", AFTER_PLACE),
    Mutation("checkpoints/manifest.py", "if each is None else each", "", ENCODED_ONCE),
    Mutation("checkpoints/folder.py", "entry is last or self", "entry is self._last_improved() or self", FEW_CALLS),
    # Handlers of the program, and programs that train alone.
    Mutation("training/loop.py", "self.shutdown.after_save()", "pass", HANDLERS),
    Mutation("processes/signals.py", "self._late.append(self.received)", "pass", HANDLERS),
    Mutation("trainer.py", "warn_if_alone()", "pass", TRAINS_ALONE),
    Mutation("processes/job.py", '.rpartition(":")[2]', "", TRAINS_ALONE),
    Mutation(
        "changes/sources.py",
        "if issubclass(type(value), ModuleType)",
        "if isinstance(value, ModuleType)",
        "metrics/test_digests.py::test_config_json_names_the_code_of_a_program_and_of_what_it_imports",
    ),
    # What is compiled.
    Mutation(
        "networks/parallel.py", "module.forward = functools.partial(_forward_of_class, module)", "pass", BY_BLOCKS
    ),
    Mutation(
        "networks/parallel.py",
        "if isinstance(module, torch.jit.ScriptModule):",
        "if False:",
        LAUNCH + "test_a_scripted_network_is_not_compiled_once_more",
    ),
    Mutation(
        "networks/parallel.py",
        "if {*module._buffers.keys()} - module._non_persistent_buffers_set",
        "if module._buffers.keys() - module._non_persistent_buffers_set",
        LAUNCH + "test_a_scripted_network_is_not_compiled_once_more",
    ),
    Mutation(
        "networks/fsdp.py",
        "if isinstance(module, torch.jit.ScriptModule):",
        "if False:",
        "networks/test_situations.py::test_shards_train_what_one_process_trains_or_say_why_not",
    ),
    Mutation(
        "networks/parallel.py",
        "self.world.size > 1 and not isinstance(net, torch.jit.ScriptModule):",
        "self.world.size > 1:",
        "networks/test_situations.py::test_shards_train_what_one_process_trains_or_say_why_not",
    ),
    Mutation(
        "model_internals/attributes.py",
        " if not isinstance(part, torch.jit.ScriptModule))",
        ")",
        "calls/test_replay.py::test_the_first_module_with_an_output_or_gradient_that_is_not_finite_is_named",
    ),
    Mutation(
        "callbacks.py",
        "if isinstance(module, torch.jit.ScriptModule):",
        "if False:",
        "test_callbacks.py::test_activations_of_a_module_that_takes_no_hooks_are_an_error_that_names_it",
    ),
    Mutation(
        "training/step_verifier.py",
        'group["params"] if p.requires_grad}',
        'group["params"]}',
        RIGHT_VERIFIED + "[late keys]",
    ),
    Mutation(
        "training/step_verifier.py",
        "others = {id(p): p for _, p in parameters",
        "others = {i: p for i, (_, p) in enumerate(parameters)",
        RIGHT_VERIFIED + "[late keys]",
    ),
    Mutation(
        "training/step_verifier.py",
        "return first.shape != second.shape or not torch.equal(bits_of(first), bits_of(second))",
        "return True",
        RIGHT_VERIFIED + "[new memory]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "yield from value.named_parameters(recurse=False)",
        "yield from ()",
        RIGHT_VERIFIED + "[scripted student]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "            yield from buffers.items()\n",
        "",
        RIGHT_VERIFIED + "[scripted student]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "in self._opened or isinstance(value, nn.Module):",
        "in self._opened:",
        RIGHT_VERIFIED + "[locked keys]",
    ),
    Mutation("model_internals/rollback.py", "    tensor.copy_(kept)", "    pass", RIGHT_VERIFIED + "[inference]"),
    Mutation(
        "training/step_verifier.py",
        " if sum(p.numel() for p in others.values()) <= sum(trained.values()) else []",
        "",
        "training/test_step_verifier.py::test_what_cannot_be_taken_back_is_an_error_in_the_first_step",
    ),
    Mutation("tools/audit/couplings.py", "if shift != 0} if given else {0}", "if shift != 0}", COUPLED),
    Mutation(
        "tools/audit/couplings.py", "return {each % ndim for each, shift in", "return {each for each, shift in", COUPLED
    ),
    Mutation("tools/audit/couplings.py", "strict=False) if shift != 0}", "strict=False)}", COUPLED),
    Mutation("training/session.py", "self.compiled.load()", "pass", RESTART),
    Mutation("training/checkpointer.py", "session.compiled.save()", "pass", RESTART),
    Mutation(
        "checkpoints/compiled.py",
        "hmac.compare_digest(content[:_SIGNATURE], self._signature(key, artifacts))",
        "True",
        RESTART,
    ),
    Mutation("checkpoints/compiled.py", "self._made_by + artifacts", "artifacts", RESTART),
    Mutation("checkpoints/compiled.py", "mode=0o700, ", "", RESTART),
    # Time that passes while a process is stopped.
    Mutation(
        "processes/hang_watch.py",
        "min(now - polled, 2 * pause)",
        "now - polled",
        HANGS + "test_time_in_which_a_process_is_stopped_is_no_hang",
    ),
    # What a run says of itself.
    Mutation("training/status_file.py", 'process_start(process) != status.get("process_start")', "False", DEAD),
    Mutation("training/status_file.py", 'status.get("host") != socket.gethostname() or ', "", DEAD),
    Mutation("training/status_file.py", "return received.name", "pass", WHY_ENDED),
    Mutation(
        "training/status_file.py",
        "            self._take_values()\n        self._content",
        "            pass\n        self._content",
        WHY_ENDED,
    ),
    Mutation("training/status_file.py", "if not self._has_warned:", "if True:", UNWRITABLE_STATUS),
    Mutation(
        "calls/launching.py",
        "            status.end(error)",
        "            pass",
        HANGS + "test_the_line_that_hangs_is_named_and_the_run_fails",
    ),
    Mutation(
        "calls/launching.py",
        "        StatusFile() as status,",
        "        StatusFile(writes_end=False) as status,",
        BY_SIGTERM,
    ),
    Mutation("training/loop.py", '        self.report.show_status("running")\n', "", DOING),
    Mutation(
        "checkpoints/folder.py",
        "        self._note_durable()\n        if self._on_saved",
        "        if self._on_saved",
        DOING,
    ),
    # What users of other trainers reach for.
    Mutation(
        "model_internals/checks.py",
        'name in _names_in(getattr(value, "__code__", None))',
        "False",
        "training/test_likely_mistakes.py::test_a_method_of_another_trainer_is_a_warning_unless_the_program_calls_it",
    ),
    Mutation(
        "training/session.py",
        "(self.datamodule, DataModule), *callbacks",
        "*callbacks",
        "training/test_likely_mistakes.py::test_a_method_of_another_trainer_is_a_warning_unless_the_program_calls_it",
    ),
    Mutation(
        "model_internals/attributes.py",
        'for name in getattr(owner, "state_attributes", ()):',
        "for name in ():",
        ATTRIBUTES + "test_they_are_after_any_cut_what_they_are_without_one",
    ),
    Mutation(
        "model_internals/attributes.py",
        "deque(value[1:], maxlen=value[0])",
        "deque(value[1:])",
        ATTRIBUTES + "test_they_are_after_any_cut_what_they_are_without_one",
    ),
    Mutation(
        "changes/misfits.py",
        " and not isinstance(part, AttributeState)",
        "",
        ATTRIBUTES + "test_a_program_may_name_more_and_fewer_of_them_later",
    ),
    Mutation(
        "state.py",
        'row.pop("kind", "end") == "end"',
        'row.pop("kind", None) is None',
        "training/test_history.py::test_it_has_every_row_of_the_run_once_with_files_and_without",
    ),
    Mutation(
        "training/training_log.py",
        "self.rows.append(",
        "print(",
        "training/test_history.py::test_it_has_every_row_of_the_run_once_with_files_and_without",
    ),
    Mutation(
        "data.py",
        "rng.derive_seed(epoch_seed(seed, epoch, name), index)",
        "rng.derive_seed(seed, epoch, index)",
        "test_data.py::test_a_loop_by_hand_can_read_what_a_run_reads",
    ),
    Mutation(
        "model_internals/inference.py",
        "with rng.fork_rng(torch.device(device)):",
        "if True:",
        "test_model.py::test_loading_draws_no_random_numbers",
    ),
    # Gradients of unusual programs.
    Mutation(
        "model_internals/step_tap.py",
        '["backward"](loss, *args, **kwargs)',
        '["backward"](loss, *args, retain_graph=False)',
        "calls/test_replay.py::test_a_model_may_override_backward_with_the_arguments_that_it_uses",
    ),
    Mutation(
        "networks/precision.py",
        "        self._report_gradients = report  # Of the",
        "        # Of the",
        GRADIENTS + "test_the_norm_of_gradients_is_that_of_the_weights_as_they_are_for_each_optimizer",
    ),
    Mutation(
        "networks/precision.py",
        "self._is_weighted = None  # Those of",
        "pass  # Those of",
        DISTRIBUTED + "test_losses_of_another_optimizer_than_that_of_a_closure_may_have_weights",
    ),
    Mutation(
        "model_internals/checks.py",
        "Optimizer | LRScheduler | AttributeState)",
        "Optimizer | LRScheduler)",
        ATTRIBUTES + "test_a_tensor_that_an_optimizer_trains_cannot_be_one_since_a_resume_would_replace_it",
    ),
    Mutation(
        "networks/precision.py",
        "loss.backward(None, retain_graph)",
        "loss.backward()",
        GRADIENTS + "test_several_losses_of_one_graph_with_several_optimizers",
    ),
    Mutation(
        "networks/precision.py",
        "            self._finish_gradients(optimizer, limit)\n            return",
        "            return",
        GRADIENTS + "test_an_optimizer_with_a_closure_does_what_it_does_by_hand",
    ),
    Mutation(
        "networks/precision.py",
        "dist.all_reduce(mean)",
        "pass",
        DISTRIBUTED + "test_closures_and_hooks_of_steps_get_averages_over_the_ranks",
    ),
    Mutation(
        "networks/precision.py",
        "            p.grad = p.grad.coalesce()\n",
        "            pass\n",
        GRADIENTS + "test_sparse_gradients_are_weighted_measured_and_clipped_as_dense_ones",
    ),
    # What hooks see and may ask for.
    Mutation(
        "training/loop.py",
        "self.monitor.update(self.log.epoch_means)",
        "pass",
        MONITORED + "test_the_mean_over_an_epoch_decides_best_and_patience",
    ),
    Mutation(
        "training/monitor.py",
        'state_dict["score"], state_dict["step"]',
        'state_dict["score"], None',
        MONITORED + "test_a_validation_that_fails_after_the_decision_changes_nothing",
    ),
    Mutation(
        "checkpoints/manifest.py",
        'content["monitor"]["step"]',
        'state["validated_step"]',
        MONITORED + "test_a_validation_that_fails_after_the_decision_changes_nothing",
    ),
    Mutation(
        "training/loop.py",
        '            self.hooks.call("on_validation_metrics", dict(values))\n',
        "",
        MONITORED + "test_a_plateau_sees_each_validation_once_whatever_their_interval",
    ),
    Mutation(
        "training/loop.py",
        'self.hooks.call("on_validation_metrics", validated)',
        'self.hooks.call("on_validation_metrics", values)',
        MONITORED + "test_a_finished_run_has_no_validation_again",
    ),
    Mutation(
        "training/loop.py",
        "        is_requested = self.validation_requested()\n",
        "        is_requested = False\n",
        REQUESTS + "test_a_checkpoint_and_a_validation_on_request_come_at_the_end_of_the_step",
    ),
    Mutation(
        "trainer.py",
        "for each in (model, *self.callbacks)",
        "for each in (model,)",
        REQUESTS + "test_a_callback_that_stops_needs_no_limit",
    ),
    Mutation(
        "training/stopping.py",
        "self._shutdown.wake()",
        "pass",
        REQUESTS + "test_every_hook_may_end_the_training_at_the_next_boundary",
    ),
    Mutation(
        "training/stopping.py",
        "save, validation, stop = map(bool, shared)",
        "save, validation, stop = [*map(bool, shared[:2]), False]",
        DISTRIBUTED + "test_what_one_rank_asks_for_all_ranks_do",
    ),
    Mutation(
        "training/loop.py",
        "data = context.hold_batch(None)",
        "pass",
        REQUESTS + "test_batch_hooks_see_the_batch_that_the_step_gets",
    ),
    Mutation(
        "training/loop.py",
        "moves and not has_batch_hooks",
        "moves",
        REQUESTS + "test_batch_hooks_see_the_batch_that_the_step_gets",
    ),
    Mutation(
        "training/evaluator.py",
        "                del batch  # Its",
        "                # Its",
        REQUESTS + "test_no_batch_on_the_device_is_kept_alive_while_the_next_is_loaded",
    ),
    Mutation(
        "calls/predict.py",
        "session.context.begin_predictions(name)",
        "pass",
        REQUESTS + "test_steps_and_hooks_know_the_split_at_work",
    ),
    Mutation(
        "checkpoints/folder.py",
        'save.entries[-1]["improved"]',
        "True",
        REQUESTS + "test_a_checkpoint_is_told_when_it_is_durable",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "return any(wants)",
        "return wants[0]",
        REQUESTS + "test_a_callback_may_stop_as_a_model_may",
    ),
    Mutation(
        "docs/order_of_hooks.md",
        "| `setup` | model, callbacks |",
        "| `setup` | model |",
        DISTRIBUTED + "test_the_page_says_what_each_method_has_in_hand",
    ),
    # What a resume restores.
    Mutation(
        "training/loop.py",
        "used random numbers.\n        self.checkpointer.restore_rng()",
        "used random numbers.\n        pass",
        ANY_CUT,
    ),
    Mutation("loading/train_data.py", "samples=state.epoch_samples", "samples=0", ANY_CUT),
    Mutation("metrics/accumulator.py", "self.load_state_dict(state_dict)", "pass", ANY_CUT),
    Mutation(
        "training/monitor.py", 'state_dict["best"], state_dict["history"]', '{}, state_dict["history"]', BEST_METRICS
    ),
    Mutation("training/monitor.py", 'state_dict["best"], state_dict["history"]', 'state_dict["best"], []', ANY_CUT),
    Mutation("training/training_log.py", 'self._session.context.record(state_dict["latest"])', "pass", ANY_CUT),
    Mutation("training/hook_dispatch.py", "callbacks[name].load_state_dict(state)", "pass", ANY_CUT),
    Mutation(
        "training/training_log.py",
        'state_dict["flushed_step"], state_dict["rows"]',
        'state_dict["flushed_step"], 0',
        RESUME + "test_a_crash_between_checkpoints_repeats_what_was_lost",
    ),
    Mutation("changes/comparing.py", "if found and not allows:", "if False:", OTHER_HPARAMS),
    Mutation(
        "training/resuming.py",
        "isinstance(choice, Path) or session.options.allow",
        "False and session.options.allow",
        OTHER_HPARAMS,
    ),
    Mutation("changes/misfits.py", "(a != a and b != b)", "False", SAME_HPARAMS),
    Mutation(
        "changes/misfits.py",
        "isinstance(a, list | tuple) and isinstance(b, list | tuple)",
        "False",
        SAME_HPARAMS,
    ),
    Mutation("changes/misfits.py", "(a.dtype, a.shape) != (b.dtype, b.shape)", "False", DIFFERENT_HPARAMS),
    # Going back to the best, going on with a path, and starting from another training.
    Mutation("training/resuming.py", "_set_aside_newer(session, path, step)", "pass", GOING_BACK),
    Mutation("training/resuming.py", "shutil.copyfile(folder / name, target / name)", "pass", GOING_BACK),
    Mutation(
        "training/resuming.py",
        "if session.world.broadcast(has_begun):",
        "if False:",
        RESUME + "test_a_run_that_a_path_has_begun_goes_on_when_it_is_started_again",
    ),
    Mutation(
        "training/resuming.py",
        "if session.world.broadcast(has_begun):",
        "if False:",
        RESUME + "test_a_run_that_went_back_to_the_best_goes_on_when_it_is_started_again",
    ),
    Mutation(
        "training/resuming.py",
        "newest is not None and newest[",
        "newest is not None or newest[",
        RESUME + "test_a_path_continues_from_that_file_and_leaves_it_alone",
    ),
    Mutation(
        "training/resuming.py",
        'if choice == "best" and not is_best(session',
        "if False and not is_best(session",
        RESUME + "test_a_best_checkpoint_that_is_not_there_is_an_error",
    ),
    Mutation(
        "checkpoints/folder.py",
        "if len(names) > 1:",
        "if False:",
        RESUME + "test_a_run_folder_without_checkpoints_or_of_several_models_is_an_error",
    ),
    Mutation(
        "checkpoints/folder.py",
        "yield from checkpoints.candidates(choice",
        'yield from checkpoints.candidates("last"',
        INITIAL + "test_a_run_folder_gives_its_best_checkpoint",
    ),
    Mutation(
        "training/resuming.py",
        "if resumed_from is not None:",
        "if False:",
        INITIAL + "test_a_run_that_resumes_ignores_it",
    ),
    Mutation(
        "training/resuming.py",
        "if set(names) <= set(networks) else saved",
        "if False else saved",
        INITIAL + "test_averaged_weights_are_taken_and_an_average_starts_from_what_was_taken",
    ),
    Mutation(
        "training/resuming.py",
        "if set(names) <= set(networks) else saved",
        "if True else saved",
        INITIAL + "test_averaged_weights_are_taken_and_an_average_starts_from_what_was_taken",
    ),
    Mutation(
        "training/resuming.py",
        "(is_exact and len(names) < len(wanted))",
        "False",
        INITIAL + "test_a_named_part_that_is_missing_is_an_error_that_says_what_there_is",
    ),
    Mutation(
        "training/resuming.py",
        "fast_init=not is_all",
        "fast_init=is_all",
        INITIAL + "test_a_model_with_its_own_load_state_dict_loads_its_networks_or_all",
    ),
    # What is drawn for a sample.
    Mutation(
        "loading/seeding.py",
        'with rng.fork_rng(torch.device("cpu")):\n            return self',
        "if True:\n            return self",
        WORKERS,
    ),
    Mutation("loading/seeding.py", "rng.seed_cpu(_seed_of_sample(seed, index))", "pass", WORKERS),
    Mutation("processes/rng.py", 'sys.modules["numpy"].random.seed(seed & 0xFFFFFFFF)', "pass", WORKERS),
    # Learning rates.
    Mutation("schedules.py", "(step + 1) / warmup_steps if", "step / warmup_steps if", FORMULA),
    Mutation("schedules.py", "if step < warmup_steps else", "if step <= warmup_steps else", FORMULA),
    Mutation("schedules.py", "max(0, step - start)", "(step - start)", FORMULA),
    Mutation("schedules.py", "if step >= end:", "if step > end + 1:", FORMULA),
    Mutation(
        "schedules.py",
        "functools.partial(_warm_up, warmup_steps, fall)",
        "lambda step: _warm_up(warmup_steps, fall, step)",
        PLAIN_SCHEDULER,
    ),
    Mutation(
        "training/hook_dispatch.py",
        "elif warn_unknown and state:",
        "elif warn_unknown:",
        RESUME + "test_only_a_lost_state_of_a_callback_is_told",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "elif warn_unknown and state:",
        "elif False:",
        RESUME + "test_only_a_lost_state_of_a_callback_is_told",
    ),
    # States.
    Mutation("training/loop.py", "            self.checkpointer.check_states()\n", "            pass\n", NAMED_STATE),
    Mutation("checkpoints/files.py", "    except RecursionError:\n", "    except OverflowError:\n", NAMED_STATE),
    Mutation(
        "training/checkpointer.py", '            yield f"{type(datamodule)', '            f"{type(datamodule)', OF_STATE
    ),
    Mutation(
        "training/checkpointer.py", '        yield "train.state_dict()"', '        "train.state_dict()"', OF_STATE
    ),
    Mutation("planning/schedule_reading.py", "copy.deepcopy([{**group", "([{**group", OF_STATE),
    Mutation(
        "training/checkpointer.py",
        "is_stateful(session.datamodule)",
        "False",
        STATES + "test_the_state_of_a_datamodule_and_what_a_file_can_hold_go_on_after_a_resume",
    ),
    Mutation(
        "training/checkpointer.py",
        'if name != "datamodule" or name in content:',
        "if True:",
        STATES + "test_the_state_of_a_datamodule_and_what_a_file_can_hold_go_on_after_a_resume",
    ),
    # Optimizers in others, and groups that are added.
    Mutation(
        "model_internals/attributes.py", "isinstance(part, nn.Module | Optimizer)", "isinstance(part, nn.Module)", INNER
    ),
    Mutation(
        "model_internals/attributes.py", "isinstance(part, nn.Module | Optimizer)", "isinstance(part, Optimizer)", INNER
    ),
    Mutation(
        "model_internals/attributes.py", "return is_duck or isinstance(value, LRScheduler)", "return is_duck", INNER
    ),
    Mutation(
        "model_internals/attributes.py",
        "    for name, part in parts:\n        for path",
        "    for name, part in [*parts]:\n        for path",
        INNER,
    ),
    Mutation("changes/misfits.py", "for a, b, is_same_list in pairs:", "for a, b, is_same_list in ():", INNER),
    Mutation("changes/misfits.py", "for a, b in of_states:", "for a, b in ():", INNER),
    Mutation(
        "training/resuming.py",
        "    with shared_groups(parts):",
        "    if parts:",
        WRAPPERS + "test_parts_of_another_run_are_taken_with_what_they_wrap",
    ),
    Mutation("model_internals/attributes.py", "any(share_groups(part, other) for", "any(False for", WRAPPED),
    Mutation("model_internals/checks.py", "attributes = own_attributes(value)", "attributes = {}", NOT_HELD),
    Mutation("networks/precision.py", "                self._check_held(optimizer)\n", "", NOT_HELD),
    Mutation("networks/precision.py", "if is_held and not self._has_several", "if not self._has_several", NOT_HELD),
    Mutation("networks/precision.py", "        self._num_windows += 1\n", "", NOT_HELD),
    Mutation(
        "networks/precision.py", "if is_held := window != self._num_windows:", "if is_held := True:", HELD_OTHERWISE
    ),
    Mutation("model_internals/checks.py", "for each in (owner, *others)", "for each in (owner,)", HELD_OTHERWISE),
    Mutation(
        "training/session.py",
        "if self.checkpoints is None or type(",
        "if type(",
        WRAPPERS + "test_without_checkpoints_nothing_is_lost",
    ),
    Mutation("training/resuming.py", "    added.make()\n", "", ADDED_ANYWHERE),
    Mutation("changes/added_groups.py", "            p.requires_grad_(is_trained)", "            pass", ADDED_ANYWHERE),
    Mutation("changes/added_groups.py", "    if found not in pending:", "    if True:", ADDED_ANYWHERE),
    Mutation(
        "changes/added_groups.py",
        "    pending.remove(found)\n",
        "",
        ADDED + "test_a_group_is_left_out_once_if_it_is_there_already",
    ),
    Mutation(
        "changes/added_groups.py",
        '"param_groups": [*states[name]["param_groups"], *saved[name]["param_groups"][-len(groups) :]]',
        '"param_groups": saved[name]["param_groups"]',
        ADDED + "test_another_rate_counts_with_groups_that_are_made_again",
    ),
    Mutation("changes/added_groups.py", 'if any("" in group["parameters"] for group in groups)', "if False", NOT_AGAIN),
    Mutation(
        "training/session.py", "                if text not in self._said:", "                if True:", NOT_AGAIN
    ),
    Mutation("loading/iterable_loader.py", "rng.set_state(self._rng_at_start, cpu)", "pass", KEPT_ORDER),
    Mutation("loading/iterable_loader.py", "min(batches, window)", "1", KEPT_ORDER),
    Mutation(
        "loading/iterable_loader.py",
        "if rng.has_drawn(state) and not _has_known_order(self._iterable):",
        "if False:",
        DRAWN_LATER,
    ),
    Mutation(
        "loading/iterable_loader.py",
        "and not _has_known_order(self._iterable)",
        "",
        ORDER + "test_samples_that_draw_are_no_warning_where_the_order_is_known",
    ),
    # Evaluations.
    Mutation(
        "calls/evaluate.py",
        "    session.context.record(metrics)\n",
        "",
        "processes/test_launch.py::test_a_caller_reads_from_the_model_what_it_could_read_after_one_process",
    ),
    Mutation(
        "training/evaluator.py",
        ", cudnn_benchmark(False)",
        "",
        TRAINING + "test_cudnn_measures_in_training_and_not_in_evaluations",
    ),
    Mutation(
        "processes/devices.py",
        "torch.backends.cudnn.benchmark = before",
        "pass",
        TRAINING + "test_cudnn_measures_in_training_and_not_in_evaluations",
    ),
    Mutation(
        "processes/devices.py",
        "torch.use_deterministic_algorithms, before, warn_only=warns_only",
        "torch.use_deterministic_algorithms, before",
        TRAINING + "test_deterministic_algorithms_that_only_warn_do_so_after_a_run",
    ),
    Mutation(
        "data.py",
        "indices if tensor.is_cpu else indices.to(tensor.device, non_blocking=True)",
        "indices",
        "loading/test_loaders.py::test_tensors_on_a_device_are_gathered_there",
    ),
    Mutation(
        "checkpoints/snapshot.py",
        "value.is_cpu and not self._of_all",
        "False",
        "checkpoints/test_files.py::test_a_snapshot_that_is_written_at_once_copies_no_tensor_of_the_cpu",
    ),
    Mutation("training/resuming.py", "isinstance(parts.get(name), Optimizer)", "False", ON_DEVICE),
    Mutation("training/resuming.py", 'if name in ("rng", "data")', "if False", ON_DEVICE),
    Mutation(
        "processes/devices.py",
        "mapped[key] = map_batch(value, of_tensor, of_object)",
        "mapped.update([(key, map_batch(value, of_tensor, of_object))])",
        "processes/test_devices.py::test_moving_leaves_everything_else_as_it_is",
    ),
    Mutation(
        "training/loop.py",
        "0 if self.options.fast_dev_run else self.options.sanity_batches",
        "self.options.sanity_batches",
        TRAINING + "test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing",
    ),
    Mutation(
        "options.py",
        'if self.fast_dev_run and phase != "train" and limit != 0:',
        "if False:",
        TRAINING + "test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing",
    ),
    Mutation(
        "arguments.py",
        'raise type(error)(f"{name}={shown(value)}: {error}")',
        "raise error",
        "test_options.py::test_an_option_that_is_set_later_is_checked_at_the_next_call",
    ),
    Mutation(
        "model_internals/summary.py",
        "if level < depth and",
        "if",
        "test_model.py::test_summary_goes_as_deep_as_it_is_told_and_at_last_to_each_parameter",
    ),
    Mutation(
        "model_internals/summary.py",
        "elif depth is None:",
        "elif level == 0:",
        "test_model.py::test_summary_goes_as_deep_as_it_is_told_and_at_last_to_each_parameter",
    ),
    # Periods of callbacks.
    Mutation("training/hook_dispatch.py", "arguments[0].step + 1", "arguments[0].step", PERIODS),
    Mutation("training/hook_dispatch.py", "if hook in _STEP_HOOKS:", "if hook in ():", PERIODS),
    Mutation("training/hook_dispatch.py", "if hook in _EPOCH_HOOKS:", "if hook in ():", PERIODS),
    Mutation(
        "training/hook_dispatch.py",
        "self._step = self._epoch = 0",
        "self._step = self._epoch = 1",
        CALLBACKS + "test_a_period_does_not_concern_the_model_the_sanity_validation_and_evaluations_of_their_own",
    ),
    # Batches of similar length.
    Mutation(
        "samplers.py",
        "size * length > self._max_tokens",
        "length > self._max_tokens",
        SAMPLERS + "test_every_sample_is_in_one_batch_and_no_batch_exceeds_its_limits",
    ),
    Mutation("samplers.py", "pool = pool[self.lengths[pool].argsort(stable=True)]", "", LITTLE_PADDING),
    Mutation("samplers.py", "_BATCHES_PER_POOL = 100", "_BATCHES_PER_POOL = 10**6", LITTLE_PADDING),
    Mutation("samplers.py", "RandomSampler(self.lengths)", "range(len(self.lengths))", LITTLE_PADDING),
    Mutation(
        "samplers.py",
        "generator=self.sampler.generator",
        "generator=None",
        SAMPLERS + "test_in_a_loader_of_ones_own_the_order_is_a_function_of_seed_and_epoch_too",
    ),
    Mutation(
        "calls/predict.py",
        "        predictions.throw(error)\n",
        "",
        "calls/test_predict.py::test_what_a_file_cannot_hold_is_named_and_leaves_the_earlier_file",
    ),
    Mutation(
        "processes/rng.py",
        "    gc.disable()\n",
        "",
        "processes/test_rng.py::test_what_is_collected_while_a_state_is_asked_for_may_ask_for_it_too",
    ),
    Mutation("processes/random_order.py", "_ROUNDS = 6", "_ROUNDS = 2", NO_PATTERN),
    Mutation("processes/random_order.py", "_SORTED = 4096", "_SORTED = 4", NO_PATTERN),
    Mutation("processes/random_order.py", "permuted >= self._length).any()", "permuted > self._length).any()", ONCE),
    Mutation("processes/random_order.py", "derive_seed(self._seed, 2, window)", "derive_seed(2, window)", STORED_ORDER),
    Mutation("processes/random_order.py", "derive_seed(seed, 1) % length", "0", FEW_BLOCKS),
    Mutation("processes/random_order.py", "_BLOCKS_PER_WINDOW = 1024", "_BLOCKS_PER_WINDOW = 2**20", FEW_BLOCKS),
    Mutation("processes/random_order.py", "length < LEAST_COMPUTED", "length <= LEAST_COMPUTED", RANDPERM),
    Mutation("processes/random_order.py", "places, right=True)", "places)", GONE_OF_ORDER),
    Mutation("processes/random_order.py", "(places >= first) & (places < end)", "places >= first", GONE_OF_ORDER),
    Mutation("processes/random_order.py", "(places >= first) & (places < end)", "places < end", GONE_OF_ORDER),
    Mutation("processes/random_order.py", "found >= self._length).any()", "found > self._length).any()", GONE_OF_ORDER),
    Mutation(
        "processes/random_order.py",
        "torch.where(blocks < self._num_blocks, full - blocks, 0)",
        "(full - blocks)",
        GONE_OF_ORDER,
    ),
    Mutation(
        "loading/sample_order.py",
        "return order.without(length, start)",
        "return order.without(length, 0)",
        BEGUN_BLOCKS,
    ),
    Mutation("processes/random_order.py", "self._places[part]", "range(self._length)[part]", SLICES),
    Mutation("loading/begun_epoch.py", "shuffled in blocks of {self.shuffle_block}", "shuffled", BEGUN_BLOCKS),
    Mutation(
        "loading/split_loader.py",
        "            begun.shuffle_block,\n",
        "            self._shuffle_block,\n",
        BEGUN_BLOCKS,
    ),
    Mutation(
        "loading/split_loader.py",
        "self._order.tensors(batches - self._num_finished)",
        "self._order.tensors(batches)",
        BILLIONS,
    ),
    Mutation("loading/sample_order.py", "world.size)[world.rank]", "world.size)[0]", ANY_RANKS),
    Mutation("loading/sample_order.py", "len(parts[i]) + 1) // 2", "len(parts[i]) + 1)", ANY_RANKS),
    Mutation("loading/sample_order.py", "if i < full:", "if True:", CONSECUTIVE),
    Mutation("loading/sample_order.py", "low += rank * size  #", "low += rank  #", CONSECUTIVE),
    Mutation("loading/sample_order.py", "rank * each + min(rank, more)", "rank * (each + 1)", CONSECUTIVE),
    Mutation(
        "loading/sample_order.py", "len(self) if self._is_dealt else self._remaining", "self._remaining", CONSECUTIVE
    ),
    Mutation(
        "loading/sample_order.py",
        "parts = [list(batch) for batch in batches if len(batch) > 0]",
        "parts = [[index for batch in batches for index in batch]]",
        ANY_RANKS,
    ),
    # A rank that waits, where Python handles no signal, for one that a signal has ended.
    Mutation("processes/launch.py", "left_file(self._folder, self._attempt).touch()", "pass", WAITS_FOR_ONE),
    Mutation("processes/peers.py", " and polls_alone < _MAX_POLLS_ALONE", "", WAITS_FOR_ONE),
    Mutation("processes/signals.py", "shared_phase().value = ENDING", "pass", CLOSES),
    # States of optimizers of other data types than their parameters.
    Mutation("checkpoints/optimizer_states.py", "else saved.to(loaded.device)", "else loaded", KEEP_BITS),
    Mutation(
        "checkpoints/optimizer_states.py",
        "return type(saved)(map(_as_saved, saved, loaded))",
        "return loaded",
        KEEP_BITS,
    ),
    Mutation("checkpoints/optimizer_states.py", "saved if isinstance(saved, str) else loaded", "loaded", KEEP_BITS),
    Mutation("checkpoints/optimizer_states.py", "saved_types.get(id(p), p.dtype) == p.dtype", "True", FOLLOW),
    # How many batches an epoch has.
    Mutation("loading/split_loader.py", "if i + 1 < length:", "if False:", FEWER),
    Mutation("loading/iterable_loader.py", "if length is not None and given < length:", "if False:", FEWER),
    Mutation(
        "loading/sample_order.py",
        "itertools.islice(batches, limit + 1)",
        "itertools.islice(batches, limit)",
        LOADERS + "test_a_sampler_without_an_end_is_an_error_that_says_how_many_were_drawn",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "min(window, sys.maxsize)",
        "window",
        LOADERS + "test_a_window_may_be_longer_than_any_epoch",
    ),
    Mutation(
        "loading/iterable_loader.py",
        'options["persistent_workers"] = False',
        "pass",
        LOADERS + "test_an_iterable_dataset_knows_the_epoch_whatever_came_before",
    ),
    # Validation.
    Mutation(
        "planning/due.py",
        "if state.validated_step == state.step:",
        "if False:",
        "training/test_stopping.py::test_no_step_is_validated_twice",
    ),
    Mutation("planning/due.py", "options.keep_last != 0 and (", "(", "training/test_stopping.py::test_save_due"),
    Mutation("training/evaluator.py", "with rng.fork_rng(session.device), ", "with ", INERT),
    Mutation("training/evaluator.py", "module.training = training", "pass", INERT),
    Mutation(
        "training/evaluator.py",
        "torch.no_grad()",
        "torch.inference_mode()",
        TRAINING + "test_a_buffer_first_made_in_validation_serves_training",
    ),
    # One call at a time.
    Mutation("calls/launching.py", "if first is not own:", "if False:", "calls/test_launching.py"),
    Mutation("calls/launching.py", "process = os.getpid()", "process = 0", "calls/test_launching.py"),
    Mutation(
        "calls/launching.py",
        "    finally:\n        call.options.end_use()",
        "    except KeyError:\n        raise\n    else:\n        call.options.end_use()",
        "calls/test_launching.py",
    ),
    # TOML files.
    Mutation("config.py", "if not is_subclass(target, (required,)):", "if False:", NOT_CALLED),
    Mutation(
        "object_tables.py",
        "if not is_subclass(target, (*_CLASSES",
        "if False and not is_subclass(target, (*_CLASSES",
        NOT_CALLED,
    ),
    Mutation(
        "object_tables.py",
        '"__main__" if kind.__module__ == "__mp_main__" else kind.__module__',
        "kind.__module__",
        "processes/test_launch.py::test_the_config_of_a_run_names_a_class_of_the_program_as_one_process_does",
    ),
    Mutation(
        "object_tables.py",
        "*_classes_in(annotation))",
        ")",
        "test_config.py::test_a_class_in_an_annotation_is_accepted",
    ),
    Mutation("checkpoints/reading.py", "state.update((name, ", "dict().update((name, ", JUDGED),
    Mutation("model_internals/inference.py", "evaluation_state(content)", 'content["model"]', JUDGED),
    Mutation("calls/evaluate.py", "evaluation_state(content)", 'content["model"]', JUDGED),
    Mutation(
        "callbacks.py",
        "if self._step == 0:",
        "if False:",
        CALLBACKS + "test_before_the_first_step_the_weights_are_validated",
    ),
    Mutation(
        "callbacks.py",
        'self._num_averaged = int(state_dict["num_averaged"])',
        "pass",
        CALLBACKS + "test_an_average_resumes_with_the_same_bits",
    ),
    # What random cuts must find.
    Mutation("callbacks.py", 'self._step = state_dict["step"]', "pass", FUZZ),
    Mutation(
        "training/monitor.py",
        'state_dict["score"], state_dict["step"]',
        'None, state_dict["step"]',
        "training/test_resume.py::test_a_checkpoint_has_its_score_where_a_resume_ends_the_epoch_that_was_validated",
    ),
    Mutation("processes/rng.py", "random.setstate((version, tuple(words.tolist()), gauss))", "pass", FUZZ),
    Mutation("training/training_log.py", "self._logged_step, self._num_kept_rows =", "_, self._num_kept_rows =", FUZZ),
    # What people see is not drawn and written more often than they can read it.
    Mutation("display/progress.py", "_next_refresh = now + _REFRESH_SECONDS", "_next_refresh = 0.0", FEW_BARS),
    Mutation("display/progress.py", "            self.update(done)\n", "            pass\n", FEW_BARS),
    Mutation(
        "training/training_report.py",
        "if self._clock.now >= self._next_described[phase]:",
        "if True:",
        FEW_ROWS_IN_TRAIN_LOG,
    ),
    # What is assigned by mistake.
    Mutation(
        "training/session.py",
        "            check_no_method_is_hidden(model, Model)\n",
        "",
        "test_model.py::test_an_attribute_that_hides_a_method_is_an_error_that_names_both",
    ),
    Mutation(
        "trainer.py",
        "            check_no_method_is_hidden(value, kind)\n",
        "",
        "test_data.py::test_an_attribute_of_a_datamodule_that_hides_a_method_is_an_error",
    ),
    Mutation(
        "model_internals/checks.py",
        "name in _REPLACEABLE and callable(value)",
        "False",
        "test_model.py::test_a_step_may_be_replaced_by_its_compiled_form",
    ),
    Mutation(
        "model_internals/checks.py",
        "if issubclass(cls, nn.Module):",
        "if False:",
        "test_model.py::test_a_model_that_is_a_module_too_is_told_how_it_is_done_here",
    ),
    Mutation(
        "training/session.py",
        "        check_splits(self.datamodule)\n",
        "",
        "test_data.py::test_what_is_no_split_is_an_error_that_says_what_it_may_be_before_any_training",
    ),
    Mutation(
        "trainer.py",
        "        self.check()\n",
        "",
        "test_options.py::test_an_option_that_is_set_later_is_checked_at_the_next_call",
    ),
    Mutation(
        "options.py",
        "name not in options and",
        "False and",
        "test_options.py::test_an_attribute_that_is_no_option_is_an_error_with_the_most_similar_option",
    ),
    Mutation(
        "html_table.py", "map(html.escape, texts)", "texts", REPRS + "test_a_notebook_shows_a_replay_as_a_small_table"
    ),
    Mutation("html_table.py", "html.escape(note)", "note", REPRS + "test_a_notebook_shows_the_result_as_a_small_table"),
    Mutation(
        "html_table.py",
        'style="text-align: {side}"',
        'style="text-align: {side}; color: black"',
        REPRS + "test_what_a_notebook_shows_has_no_colors_and_loads_nothing",
    ),
    Mutation(
        "state.py",
        "rows, (shown, captions) = [], table_of_metrics(self.metrics)",
        "rows, shown, captions = [], self.metrics, []",
        REPRS + "test_a_notebook_shows_the_result_as_a_small_table",
    ),
    Mutation(
        "state.py",
        'metrics.get(f"{name}/epoch", value) for',
        "value for",
        REPRS + "test_a_notebook_shows_the_result_as_a_small_table",
    ),
    Mutation(
        "state.py",
        'self.best_metrics.get(name) if name.startswith("valid/") else None',
        "self.best_metrics.get(name)",
        REPRS + "test_a_notebook_shows_the_result_as_a_small_table",
    ),
    Mutation(
        "state.py",
        "if self.state.best_score is None or self.monitor is None:",
        "if self.state.best_score is None:",
        REPRS + "test_a_result_is_one_line_that_says_how_the_run_ended_and_which_validation_was_best",
    ),
    Mutation(
        "training/loop.py",
        "            monitor=self.options.monitor,\n",
        "",
        REPRS + "test_the_result_of_a_training_knows_the_monitor",
    ),
    Mutation(
        "model_internals/summary.py",
        "elif any(isinstance(parameter, UninitializedParameter)",
        "elif any(False",
        REPRS + "test_a_model_is_one_line_whatever_state_it_is_in",
    ),
    Mutation(
        "model_internals/summary.py",
        'vars(model).get("_save_name")',
        "model.save_name",
        REPRS + "test_a_model_is_one_line_whatever_state_it_is_in",
    ),
    Mutation(
        "data.py",
        "type(value) is not type(field.default) or value != field.default:",
        "value != field.default:",
        REPRS + "test_a_split_is_one_line_with_what_differs_from_the_defaults",
    ),
    Mutation(
        "data.py",
        "inspect.getattr_static(self, name)",
        "getattr(self, name)",
        REPRS + "test_a_datamodule_is_one_line_with_its_splits",
    ),
    Mutation(
        "calls/replay_result.py",
        'name.strip().rstrip(":")',
        "name",
        REPRS + "test_a_notebook_shows_a_replay_as_a_small_table",
    ),
    Mutation(
        "other_trainers.py",
        '    "model_registry":',
        '    "model_registries":',
        "test_options.py::test_every_option_of_other_trainers_is_one_of_ours_or_answered_and_no_other_name_is",
    ),
    Mutation(
        "loggers.py",
        "is not installed: pip install {library}",
        "is not installed: pip install 'helios_lite[{library}]'",
        LOGGERS + "test_a_missing_library_is_an_error_with_the_command",
    ),
    # What stands in a traceback.
    Mutation(
        "config.py",
        "with ShortTraceback():\n        return _build_all(",
        "if True:\n        return _build_all(",
        "test_config.py::test_an_error_of_a_constructor_stays_what_it_is_with_a_note",
    ),
    Mutation("processes/tracebacks.py", "    error.__traceback__ = entry", "    pass", SHORT),
    *(
        Mutation(
            "trainer.py",
            f'with ShortTraceback():\n            return self._evaluate("{method}"',
            f'if True:\n            return self._evaluate("{method}"',
            AT_ONCE if method == "validate" else SHORT,
        )
        for method in ("validate", "test")
    ),
    Mutation(
        "processes/tracebacks.py",
        "if _package(each) not in _NOT_OF_USERS:",
        'if _package(each) not in ("helios_lite", "contextlib"):',
        AT_ONCE,
    ),
    Mutation("training/status_file.py", "            self._leave(received)\n", "", STATUS + LATE_SIGNAL),
    Mutation(
        "processes/tracebacks.py",
        "_is_of_another_process(error, above[-1])",
        "True",
        TRACEBACKS + "nothing_is_left_out_where_no_line_is_the_users_or_all_is_asked_for",
    ),
    Mutation("processes/tracebacks.py", 'co_name == "reraise"', 'co_name == ""', SHORT),
    Mutation(
        "processes/tracebacks.py",
        "isinstance(error.__cause__, RemoteTraceback)",
        "False",
        LAUNCH + "test_the_trouble_of_one_rank_ends_all_within_ten_seconds_and_reaches_the_caller",
    ),
    Mutation("processes/tracebacks.py", '"helios_lite", "torch", ', '"helios_lite", ', SHORT),
    Mutation("processes/tracebacks.py", ", *sys.stdlib_module_names", "", SHORT),
    Mutation(
        "processes/tracebacks.py",
        "*in_loop[-1:], ours[-1])",
        "*in_loop[-1:])",
        TRACEBACKS + "what_the_users_line_calls_and_the_functions_of_pytorch_stay",
    ),
    Mutation(
        "processes/tracebacks.py",
        "*in_loop[-1:], ours[-1])",
        "ours[-1])",
        TRACEBACKS + "what_the_users_line_calls_and_the_functions_of_pytorch_stay",
    ),
    Mutation(
        "processes/tracebacks.py",
        ' or os.environ.get("HELIOS_LITE_FULL_TRACEBACKS")',
        "",
        TRACEBACKS + "nothing_is_left_out_where_no_line_is_the_users_or_all_is_asked_for",
    ),
    Mutation(
        "processes/tracebacks.py",
        ' or _package(each) not in ("helios_lite", "contextlib")',
        "",
        TRACEBACKS + "what_the_users_line_calls_and_the_functions_of_pytorch_stay",
    ),
    Mutation(
        "processes/worker.py",
        "with ShortTraceback():",
        "if True:",
        LAUNCH + "test_the_trouble_of_one_rank_ends_all_within_ten_seconds_and_reaches_the_caller",
    ),
    *(
        Mutation(file, f"with ShortTraceback(), {call}", f"with {call}", SHORT)
        for file, call in (
            ("trainer.py", 'shutdown.at_once():\n            call = self._call("fit"'),
            ("trainer.py", 'shutdown.at_once():\n            call = self._call("plan"'),
            ("trainer.py", 'shutdown.at_once():\n            call = self._call("replay"'),
            (
                "trainer.py",
                'shutdown.at_once():\n            call = self._call("predict", model, datamodule, shutdown)\n'
                "            from helios_lite.calls.predict import predict_to_file",
            ),
            ("calls/predict.py", "call.shutdown.at_once():\n        yield from _numbered"),
        )
    ),
    *(
        Mutation(
            file, f"{indent}with ShortTraceback():\n{indent}    {call}", f"{indent}if True:\n{indent}    {call}", SHORT
        )
        for file, indent, call in (
            ("tools/command.py", " " * 12, "_run(arguments)"),
            ("trainer.py", " " * 8, "trainer: Self = build("),
            ("config.py", " " * 4, "return Trainer.fit"),
        )
    ),
    Mutation("option_class.py", "if values:", "if False:", "test_options.py::test_options_have_names_only"),
    Mutation("option_class.py", "if option not in known:", "if False:", UNKNOWN_OPTION),
    Mutation("option_class.py", "if name in ELSEWHERE else", "if False else", UNKNOWN_OPTION),
    Mutation("object_tables.py", "known, hint=hint))", "known))", UNKNOWN_OPTION),
    Mutation("option_class.py", "    @functools.wraps(generated)", "    # Not wrapped", SIGNATURE),
    Mutation("option_class.py", "docs.get(name, ", "(", HELP),
    Mutation("trainer.py", "        documented(cls)\n", "        pass\n", HELP),
    Mutation(
        "option_class.py",
        "(OSError, TypeError, SyntaxError)",
        "SyntaxError",
        "test_options.py::test_help_without_source_has_the_options_and_without_docstrings_nothing",
    ),
    Mutation(
        "options.py",
        "if repr(value) != repr(default):",
        "if True:",
        "test_options.py::test_the_repr_of_a_trainer_makes_it_again",
    ),
    Mutation(
        "options.py",
        "flag if field.type is bool else",
        "(lambda value: None) if field.type is bool else",
        "test_options.py::test_a_value_of_a_wrong_type_is_a_type_error_that_begins_with_the_option",
    ),
    Mutation(
        "options.py",
        '    "keep_best": integer(least=-1),\n',
        '    "keep_bests": integer(least=-1),\n',
        "test_options.py::test_an_option_without_a_rule_of_its_own_has_that_of_its_annotation",
    ),
    Mutation(
        "other_trainers.py",
        '"gradient_clip_val": "clip_norm"',
        '"gradient_clip_val": "clip_norms"',
        "test_options.py::test_what_other_trainers_call_an_option_is_answered_with_what_there_is",
    ),
    Mutation(
        "trainer.py", "@dataclasses.dataclass(kw_only=True, repr=False, eq=False)  # Its own", "# Not its own", EDITOR
    ),
    Mutation("data.py", '    """Drop the last batch of an epoch if it is not full."""\n', "", EDITOR),
    Mutation("data.py", "            valid: the Split of validations, or a dict of several by name.\n", "", EDITOR),
    Mutation("state.py", "Steps finished, the clock of everything public", "Steps", EDITOR),
    # Epochs of a fixed number of steps.
    Mutation(
        "loading/passes.py",
        "if self._loader is not loader:",
        "if True:",
        PASSES + "test_a_stream_goes_on_in_the_next_epoch_and_is_begun_once",
    ),
    Mutation(
        "loading/passes.py",
        'state_dict["pass_batches"], state_dict["pass_samples"])',
        "state_dict['pass_batches'], 0)",
        PASSES + "test_a_run_cut_after_any_step_ends_like_one_that_was_not",
    ),
    Mutation(
        "loading/passes.py",
        'rng.fork_rng(torch.device("cpu")) if is_inside else contextlib.nullcontext()',
        "contextlib.nullcontext()",
        PASSES + "test_a_run_cut_after_any_step_ends_like_one_that_was_not",
    ),
    Mutation(
        "loading/train_data.py",
        "self.steps = -(-state.epoch_batch // self._window)",
        "pass",
        PASSES + "test_the_option_may_be_set_and_changed_at_a_resume",
    ),
    Mutation(
        "loading/train_data.py",
        "steps - 1, self._passes.steps_per_epoch",
        "window_start, self._passes.steps_per_epoch",
        PASSES + "test_a_fraction_of_such_an_epoch_is_one_of_its_steps",
    ),
    Mutation(
        "training/loop.py",
        "self.log, contextlib.closing(self.train_data), ",
        "self.log, ",
        PASSES + "test_workers_of_a_pass_that_goes_on_end_with_the_training",
    ),
    Mutation(
        "loading/train_data.py",
        "self._passes.count(samples)",
        "self._passes.count(size)",
        DISTRIBUTED + "test_the_number_of_processes_may_change_inside_a_pass_that_epochs_do_not_end",
    ),
    # Objects as plain data.
    Mutation(
        "object_tables.py",
        "if getattr(sys.modules[kind.__module__], kind.__name__) is not kind:",
        "if False:",
        "test_options.py::test_an_object_whose_arguments_cannot_be_read_is_told_by_its_name_and_must_be_passed",
    ),
    Mutation(
        "object_tables.py",
        "except Exception:  # A class of the user",
        "except (KeyError, TypeError):  # A class of the user",
        "test_options.py::test_an_object_whose_arguments_cannot_be_read_is_told_by_its_name_and_must_be_passed",
    ),
    Mutation(
        "object_tables.py",
        'if folder is not None and isinstance(value, str) and value == "none"',
        'if isinstance(value, str) and value == "none"',
        "test_options.py::test_the_string_none_stays_a_string_in_a_dict",
    ),
    Mutation(
        "trainer.py",
        "return cls(**{**config, **overrides})",
        "return cls.from_config({**config, **overrides})",
        "test_options.py::test_a_table_of_a_checkpoint_in_place_of_an_option_is_refused_and_runs_nothing",
    ),
    Mutation(
        "trainer.py",
        "if name not in overrides and config.get(name):",
        "if False:",
        "test_options.py::test_from_checkpoint_makes_no_object_and_asks_for_it",
    ),
    Mutation(
        "trainer.py",
        'call = self._call("fit", model, datamodule, shutdown)\n            self._check_limits(model)',
        'call = self._call("fit", model, datamodule)',
        "test_options.py::test_a_training_needs_a_limit_before_anything_runs",
    ),
    # The state of a custom loader.
    Mutation(
        "loading/iterable_loader.py",
        "self._is_exhausted = len(batches) < window",
        "pass",
        "loading/test_loaders.py::"
        "test_an_object_that_ended_in_the_last_window_has_no_batch_left_and_starts_anew_in_the_next_epoch",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "        if batches == 0:\n            self._load_state()",
        "        self._load_state()",
        "loading/test_loaders.py::test_the_generator_of_a_restored_object_is_not_seeded_again",
    ),
    # Options.
    Mutation(
        "planning/due.py",
        " or Fraction(every_epochs))",
        ")",
        "test_options.py::test_a_fraction_below_a_step_validates_after_every_step",
    ),
    Mutation("arguments.py", "below: int = 2**63", "below: float = math.inf", EXTREME + "[sanity_batches]"),
    Mutation("arguments.py", "except Exception:  # Python refuses", "except KeyError:  # Python refuses", EXTREME),
    Mutation("arguments.py", "len(encoded) > _LONGEST_PATH or", "", EXTREME + "[root]"),
    # What is seen of a training, and its speed.
    Mutation("metrics/measurements.py", "self._waited += clock()", "self._waited = clock()", SPEED),
    Mutation("metrics/measurements.py", "self._samples += batch[2]", "self._samples += batch[1]", SPEED),
    Mutation(
        "metrics/accumulator.py",
        "self._totals[name].merged(one) if name in self._totals else one",
        "one",
        EPOCH_MEANS,
    ),
    Mutation(
        "training/training_log.py",
        'self._epoch_totals.load_state_dict(state_dict["epoch_totals"], metric_objects(self._session.model))',
        "pass",
        SAME_MEANS,
    ),
    Mutation("display/lines.py", "return max(parts, default=None)", "return min(parts, default=None)", FINISHED_PART),
    # The lines of epochs.
    Mutation("display/lines.py", "<= 8 else", "<= 9 else", COLUMNS_BELOW),
    Mutation("display/lines.py", ":<8}", ":<7}", COLUMNS_BELOW),
    Mutation("display/lines.py", "{number:>7}", "{number}", COLUMNS_BELOW),
    Mutation("display/lines.py", ":>3.0%}", ":.0%}", COLUMNS_BELOW),
    Mutation("display/lines.py", "None if not done else", "None if not done or done == 1 else", COLUMNS_BELOW),
    Mutation("display/lines.py", '[*texts, "best"])) < width', "texts)) < width", TOO_LONG),
    Mutation("display/lines.py", "part.keys() - monitored", "part", TOO_LONG),
    Mutation(
        "display/console.py",
        'print(f"{name}: {history[0]:.4g} {sparkline(history)}',
        'print(f"{name}: {history[0]:.4g}\\n{sparkline(history)}',
        "display/test_console.py::"
        "test_the_final_table_has_last_and_best_values_and_counters_and_the_curve_is_on_one_line_below",
    ),
    Mutation(
        "display/console.py",
        "if path.is_relative_to(directory) else",
        "if False else",
        "display/test_console.py::"
        "test_the_final_table_has_last_and_best_values_and_counters_and_the_curve_is_on_one_line_below",
    ),
    Mutation(
        "training/session.py",
        "console.shown_path(self.folder, self.directory)",
        "self.folder",
        DOCS + "test_a_program_runs_and_prints_what_the_page_says",
    ),
    Mutation("training/training_report.py", " and not ends_epoch and", " and", LONG_EPOCHS),
    Mutation("training/training_report.py", "(not ends_epoch and self._state", "(self._state", LONG_EPOCHS),
    # Likely mistakes.
    Mutation(
        "model_internals/attributes.py",
        "module.training = False",
        "pass",
        MISTAKES + "test_what_setup_has_put_in_evaluation_mode_stays_in_it",
    ),
    Mutation(
        "networks/precision.py",
        "_clear_gradients(self._noted())",
        "pass",
        MISTAKES + "test_a_window_begins_without_gradients_that_another_loss_has_left",
    ),
    Mutation(
        "processes/launch.py",
        "os._exit(NO_GUARD_STATUS)",
        "pass",
        MISTAKES + "test_a_program_without_a_main_guard_is_told_so_once_and_nothing_else",
    ),
    Mutation(
        "model_internals/checks.py",
        '"on_": 0.75',
        '"on_": 0.99',
        MISTAKES + "test_a_misspelt_hook_is_a_warning_with_the_nearest_name",
    ),
    # stdout and stderr, whatever they are.
    Mutation(
        "processes/output.py",
        "            _empty_buffer(self.guarded_stream)\n            self.say_why_off()",
        "            self.say_why_off()",
        OUTPUT,
    ),
    Mutation("processes/worker.py", "    guard_output()\n", "", OUTPUT),
    Mutation(
        "processes/signals.py",
        'write_stderr("finishing the step and saving; press Ctrl-C again to end at once\\n")',
        'os.write(2, b"finishing the step and saving; press Ctrl-C again to end at once\\n")',
        OUTPUT,
    ),
    Mutation(
        "processes/output.py",
        "None if sys.__stderr__ is None or _has_other_file(_STDERR) else _STDERR",
        "_STDERR",
        OUTPUT,
    ),
    Mutation(
        "processes/output.py", "return number <= _STDERR and not os.get_inheritable(number)", "return False", OUTPUT
    ),
    Mutation(
        "calls/launching.py",
        "        guarded_output(),\n        alone(call, is_worker=is_worker),",
        "        alone(call, is_worker=is_worker),",
        OUTPUT,
    ),
    Mutation(
        "display/run_log.py",
        "        with contextlib.suppress(OSError):  # What it could not write before.\n            super().close()",
        "        super().close()",
        "display/test_output.py::test_a_train_log_that_cannot_be_written_to_is_one_warning",
    ),
    Mutation(
        "processes/tracebacks.py",
        "if isinstance(error, KeyboardInterrupt):",
        "if False:",
        INTERRUPTS + "test_a_sigterm_after_ctrl_c_changes_nothing",
    ),
    # File systems, and files of others.
    Mutation("file_errors.py", "    error.filename = str(path)\n", "", FILE_SYSTEMS),
    Mutation("checkpoints/lock.py", "if error.errno not in _NO_LOCKS:", "if True:", FILE_SYSTEMS),
    Mutation("checkpoints/folder.py", "            files.check_folder(self.folder)\n", "", FILE_SYSTEMS),
    Mutation("processes/worker.py", "_part(path).write_bytes(bytes(_MOST_BYTES))", "_part(path).touch()", FILE_SYSTEMS),
    Mutation(
        "file_errors.py",
        " | os.O_NOFOLLOW",
        "",
        OF_OTHERS + "test_a_link_in_the_place_of_a_file_is_refused_and_its_target_stays_as_it_was",
    ),
    Mutation("checkpoints/files.py", "return harmless(super().__str__())", "return super().__str__()", ESCAPES),
    Mutation("display/run_log.py", "return harmless(super().format(record))", "return super().format(record)", ESCAPES),
    Mutation(
        "training/resuming.py",
        "            require_parts(path, content, _EVALUATED if for_evaluation else _EVALUATED + _TRAINED)\n",
        "",
        OF_OTHERS + "test_a_checkpoint_that_is_not_complete_is_an_error_that_names_what_is_missing",
    ),
    Mutation(
        "calls/predict.py",
        "            next(predictions, None)  # This rank",
        "            assert next(predictions, None) is None  # This rank",
        "test_structure.py::test_no_assertion_does_something_which_an_optimized_python_would_leave_out",
    ),
    # Clusters.
    *(
        Mutation(
            "trainer.py",
            f"shutdown.at_once():\n            call = self._call({call}",
            f"GracefulShutdown(saves=False).at_once():\n            call = self._call({call}",
            AT_ONCE,
        )
        for call in ('"fit"', '"plan"', '"replay"', "method")
    ),
    Mutation("calls/predict.py", ", call.shutdown.at_once():", ":", AT_ONCE),
    Mutation(
        "processes/signals.py",
        "if (handler := signal.getsignal(number)) in _OF_NOBODY:",
        "if handler := signal.getsignal(number):",
        ANY_CALL,
    ),
    Mutation("calls/replay.py", "copy.copy(each) for each", "each for each", REPLAYED_AS_IT_WAS),
    Mutation("calls/replay.py", "    session.context.show_run(", "    str(", REPLAYED_AS_IT_WAS),
    Mutation("calls/step_inspector.py", "part = _Part(_copied(batch),", "part = _Part(batch,", REPLAYED_AS_IT_WAS),
    Mutation(
        "calls/step_inspector.py",
        "indices, rng_state, copy.copy(state), [])",
        "indices, rng_state, state, [])",
        REPLAYED_AS_IT_WAS,
    ),
    Mutation(
        "calls/step_inspector.py",
        "if state.skipped_steps != self._num_skipped:",
        "if False:",
        REPLAY + "windows_that_fp16_has_skipped_are_no_part_of_the_step_after_them",
    ),
    Mutation("tools/report.py", "return html.escape(harmless(", "return str(harmless(", REPORT_OF_OTHERS),
    Mutation("tools/report.py", 'html.escape(harmless("" if', 'html.escape(("" if', REPORT_OF_OTHERS),
    Mutation("tools/run_files.py", 'row["step"], number(value)', 'row["step"], value', REPORT_OF_OTHERS),
    Mutation("metrics/rows.py", '0 <= row["step"] < 2**63', "True", REPORT_OF_OTHERS),
    Mutation("tools/run_files.py", "with_evaluations=with_evaluations", "", PLOTTED),
    Mutation(
        "metrics/rows.py",
        "        except (ValueError, RecursionError):\n            continue\n        is_row",
        "        except RecursionError:\n            continue\n        is_row",
        PLOTTED,
    ),
    Mutation("tools/report.py", "kept = {min(finite)[1], max(finite)[1]}", "kept = {min(finite)[1]}", REPORT_CURVES),
    Mutation("tools/report.py", "(value / 2 - self.low / 2)", "(value - self.low / 2)", REPORT_CURVES),
    Mutation("tools/report.py", ' role="img" aria-labelledby="c{index}"', "", REPORT_FILE),
    Mutation("tools/report.py", "default-src 'none'; ", "", REPORT_FILE),
    Mutation("tools/report.py", "    if any(run.findings for run in runs):", "    if False:", REPORT_OF_OTHERS),
    Mutation("tools/paired.py", "LEVEL = 0.95", "LEVEL = 0.8", OF_CHANCE),
    Mutation("tools/paired.py", "(0.5 + LEVEL / 2, count - 1)", "(0.5 + LEVEL / 2, count)", OF_TABLES),
    Mutation("tools/paired.py", "term *= cosine * cosine * i / (i + 1)", "term *= cosine * cosine", OF_TABLES),
    Mutation("tools/paired.py", "and p_value <= 1 - LEVEL", "", OF_TABLES),
    Mutation("tools/paired.py", "_POWER = 0.8", "_POWER = 0.5", OF_CHANCE),
    Mutation("tools/paired.py", "(rounding + 1e-14 * float(sizes.max()))", "1e-14", SIGN_FLIPS),
    Mutation("tools/paired.py", "far - left", "far + 1e-9 - left", SIGN_FLIPS),
    Mutation("tools/compare.py", "(self.paired.mean > 0) == self.is_higher_better", "self.paired.mean > 0", COMPARED),
    Mutation("tools/compare.py", "if not _has_finished(_run_folder(folder, *name))", "if name", COMPARED),
    Mutation("tools/compare.py", '        "seed": seed,\n', "", COMPARED),
    Mutation("tools/compare.py", "    _read_runs(sources, folder, names)  #", "    #", NOT_COMPARED),
    Mutation("tools/compare.py", "child.terminate()", "child.kill()", STOPPED_COMPARISON),
    Mutation("tools/compare.py", "sys.exit(128 + signal.SIGTERM)", "sys.exit(1)", STOPPED_COMPARISON),
    Mutation("tools/compare.py", "hexdigest() != digest", "hexdigest() is None", NOT_COMPARED),
    Mutation("tools/compare.py", "while waiting and len(running) < jobs and not failed", "while waiting", NOT_COMPARED),
    Mutation("tools/compare.py", "    if names:\n", "    if False:\n", NOT_COMPARED),
    Mutation("tools/run_table.py", "-run.best_score if run.is_higher_better else ", "", RUNS_SORTED),
    Mutation("display/console.py", 'Text(harmless(header.removeprefix(">")))', "header", RUNS_OF_OTHERS),
    Mutation("tools/run_table.py", "not math.isfinite(value)", "False", RUNS_OF_OTHERS),
    Mutation("tools/run_files.py", " if content else {}", "", RUNS_OF_OTHERS),
    Mutation("tools/run_files.py", "is_left_behind(self.status) is True", "False", RUNS_FAILED),
    Mutation("tools/diff.py", "        if starts[0] != starts[1]:", "        if False:", DIFF + "[log points]"),
    Mutation("tools/diff.py", "self.rows.number + self.checkpoints.number > 0", "True", NOT_EQUAL),
    Mutation("tools/diff.py", 'is_clock = name == "state.seconds"', 'is_clock = name.endswith("seconds")', UNMEASURED),
    Mutation("state.py", '        "train/memory_mib/epoch",\n', "", UNMEASURED),
    Mutation("metrics/measurements.py", "return name in MEASURED", 'return name.endswith("seconds")', UNMEASURED),
    Mutation("tools/diff.py", "if not _skips_nothing(", "if False and not _skips_nothing(", SAMPLES_NOT_KNOWN),
    Mutation(
        "tools/diff.py", 'if any(row.get("epoch") not in', 'if False and any(row.get("epoch") not in', SAMPLES_NOT_KNOWN
    ),
    Mutation(
        "processes/signals.py", "if signal.getsignal(own) in (self._end_call, self._handle):", "if False:", AT_ONCE
    ),
    Mutation(
        "processes/signals.py", "            if self.has_ended_call and before:\n", "            if False:\n", DROPPED
    ),
    Mutation("processes/signals.py", "and not _is_interruptible(frame):", "and False:", IN_DEL),
    Mutation("processes/signals.py", "SystemExit, GeneratorExit)", "SystemExit)", AT_ONCE),
    Mutation("processes/signals.py", "if _is_main_thread() and self._saves:", "if _is_main_thread():", AT_ONCE),
    Mutation("calls/replay.py", "while isinstance(found, int)", "if True", LAUNCHED_REPLAY),
    Mutation(
        "processes/signals.py",
        "self.save_requested = self.is_pending = self._asked_to_save = True",
        "pass",
        CLUSTERS + "test_sigusr1_saves_after_the_step_and_the_training_goes_on",
    ),
    Mutation(
        "training/stopping.py",
        'asked = {"save"} if self._shutdown.take_save_request() else set[str]()',
        "asked = set[str]()",
        CLUSTERS + "test_a_signal_to_one_task_of_srun_saves_and_another_ends_all_of_them",
    ),
    Mutation(
        "processes/slurm.py",
        " or os.isatty(0)",
        "",
        CLUSTERS + "test_a_shell_of_several_tasks_in_a_terminal_is_one_process",
    ),
    Mutation(
        "processes/job.py",
        '"SLURM_STEP_NUM_TASKS" not in variables and',
        "False and",
        TRAINS_ALONE,
    ),
    Mutation(
        "loading/iterable_loader.py",
        "if self._is_exhausted:  # Before the window is used.",
        "if False:",
        LOADERS + "test_the_window_in_which_an_epoch_ends_too_early_is_not_given",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "last = remaining if self.marks_last else None",
        "last = remaining",
        LOADERS + "test_the_last_batch_is_marked_where_the_length_cannot_be_wrong",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "    if _is_list(loader):",
        "    if False:",
        LOADERS + "test_the_last_batch_is_marked_where_the_length_cannot_be_wrong",
    ),
    Mutation(
        "training/training_log.py",
        'values.setdefault("train/memory_mib", peak)',
        'values["train/memory_mib"] = peak',
        "display/test_lines.py::test_rows_have_the_peak_memory_of_a_device_that_counts_it",
    ),
    Mutation(
        "training/resuming.py",
        ', option="init_from"',
        "",
        TRAINING + "test_a_missing_path_or_split_is_an_error",
    ),
    Mutation(
        "tools/command.py",
        'description="\\n".join(textwrap.wrap(description, 100))',
        "description=None",
        "tools/test_command.py::test_every_command_explains_itself",
    ),
    Mutation(
        "tools/command.py",
        "    if not given:\n",
        "    if False:\n",
        "tools/test_command.py::test_alone_the_command_shows_its_help",
    ),
    Mutation(
        "tools/command.py",
        "import textwrap\n",
        "import textwrap\nimport helios_lite.config\n",
        "tools/test_command.py::test_help_does_not_wait_for_pytorch",
    ),
    Mutation(
        "tools/command.py",
        'if overrides and file not in ("runs", "lock", "compare"):',
        "if False:",
        "tools/test_command.py::test_wrong_use_is_answered_with_one_line_and_status_2",
    ),
    Mutation(
        "__init__.py",
        "from helios_lite.version import __version__\n",
        "from helios_lite.version import __version__\nimport helios_lite.trainer\n",
        "tools/test_command.py::test_help_does_not_wait_for_pytorch",
    ),
    Mutation(
        "__init__.py",
        'if not name.startswith("__"):',
        "if name in __all__:",
        "test_imports.py::test_the_package_imports_its_names_when_the_first_one_is_asked_for",
    ),
    Mutation(
        "tools/plot.py",
        " if name not in MEASURED",
        "",
        "tools/test_command.py::test_plot_leaves_times_and_texts_out_unless_they_are_asked_for",
    ),
    Mutation(
        "tools/run_files.py",
        "if name not in ROW_COLUMNS and is_number:",
        "if name not in ROW_COLUMNS:",
        "tools/test_command.py::test_plot_leaves_times_and_texts_out_unless_they_are_asked_for",
    ),
    Mutation(
        "tools/plot.py",
        "if Path(name).is_dir():",
        "if False:",
        "tools/test_command.py::test_plot_takes_no_run_for_a_metric",
    ),
    Mutation(
        "tools/plot.py",
        "if not arguments.runs:",
        "if False:",
        "tools/test_command.py::test_plot_takes_no_run_for_a_metric",
    ),
    Mutation(
        "calls/predict.py",
        "with RunLog(None, call.options.log_level):  # The",
        'logger.setLevel("INFO")\n        if False:  # The',
        AS_ONE,
    ),
    Mutation(
        "trainer.py",
        "adopt_world_of_srun(self.devices)",
        "pass",
        CLUSTERS + "test_a_signal_to_one_task_of_srun_saves_and_another_ends_all_of_them",
    ),
    Mutation(
        "processes/launch.py",
        "send_signal(self._processes[min(running)], signal.SIGUSR1)",
        "pass",
        CLUSTERS + "test_a_launched_training_passes_sigusr1_on",
    ),
    # Hangs.
    Mutation(
        "processes/hang_watch.py",
        "idle, seen = 0.0, progress",
        "seen = progress",
        HANGS + "test_a_slow_validation_is_no_hang_and_a_slow_caller_of_predict_is_none",
    ),
    Mutation(
        "processes/hang_watch.py",
        "frames = frames[: frames.index(ours[-1]) + 1]",
        "pass",
        HANGS + "test_ranks_that_a_program_starts_with_torch_elastic_are_told_apart",
    ),
    Mutation(
        "loading/workers.py",
        "faulthandler.register(signal.SIGUSR2, file=stderr)",
        "signal.signal(signal.SIGUSR2, signals.do_nothing)",
        HANGS + "test_a_loading_process_writes_its_stack",
    ),
    Mutation(
        "loading/workers.py",
        "isinstance(info.dataset, SeededDataset)",
        "False",
        LOADERS + "test_a_worker_init_fn_finds_and_changes_the_dataset_that_the_worker_reads",
    ),
    Mutation(
        "planning/due.py",
        "if state.step >= start + options.fast_dev_run else None",
        "if state.step > 0 else None",
        TRAINING + "test_fast_dev_run_does_the_next_steps_of_any_checkpoint",
    ),
    Mutation(
        "training/loop.py",
        "return bool(self.valid_names) and self.stop.limit_reached() is not None",
        "return bool(self.valid_names) and self.state.validated_step is None",
        TRAINING + "test_fast_dev_run_does_the_next_steps_of_any_checkpoint",
    ),
    # Options of a Split that are assigned, or contradict each other.
    Mutation(
        "loading/loaders.py",
        "source is self._source and all(",
        "source is self._source or all(",
        LOADERS + "test_every_option_of_a_split_may_be_assigned_between_epochs",
    ),
    Mutation(
        "loading/loaders.py",
        "        source = copy.copy(source)\n",
        "",
        LOADERS + "test_every_option_of_a_split_may_be_assigned_between_epochs",
    ),
    Mutation(
        "loading/loaders.py",
        "        Split.__post_init__(source)  # Its",
        "        pass  # Its",
        LOADERS + "test_a_wrong_value_that_is_assigned_to_a_split_is_the_error_of_split",
    ),
    Mutation(
        "loading/loaders.py",
        "            earlier.close()",
        "            pass",
        LOADERS + "test_the_workers_of_a_split_that_was_assigned_an_option_end",
    ),
    Mutation(
        "training/session.py",
        "return self._keepers[name].current()",
        "return self._keepers[name]._loader",
        "training/test_changed_data.py::test_options_assigned_to_a_split_count_from_the_next_epoch_and_evaluation_on_also_after_a_cut",
    ),
    Mutation(
        "data.py",
        'for name in ("timeout", "prefetch_factor"',
        'for name in ("prefetch_factor"',
        "test_data.py::test_a_bad_option_of_a_split_is_an_error_that_names_it",
    ),
    Mutation(
        "data.py",
        'require("prefetch_factor", self.prefetch_factor, optional(integer(least=1)))',
        "pass",
        "test_data.py::test_a_bad_option_of_a_split_is_an_error_that_names_it",
    ),
    # A quick check of a finished run; several profiles.
    Mutation(
        "loading/planned_steps.py",
        """return max(total, int(self._saved["state"]["step"]) + options.fast_dev_run)""",
        "return total",
        TRAINING + "test_fast_dev_run_does_the_next_steps_of_any_checkpoint",
    ),
    Mutation("callbacks.py", "if each._path == self._path:", "if False:", PROFILES),
    Mutation("callbacks.py", "if each.first <= self.last and", "if False and", PROFILES),
    # Memory maps.
    Mutation(
        "processes/launch.py",
        "arguments), file, memory_maps, protocol)",
        "arguments), file, pickle, protocol)",
        MAPS_SENT,
    ),
    Mutation("processes/memory_maps.py", "_reduced(value) if type(value) is", "NotImplemented if type(value) is", MAPS),
    Mutation("processes/memory_maps.py", " + low - begin", "", MAPS),
    Mutation("processes/memory_maps.py", "array.__array_finalize__(part)", "pass", MAPS),
    Mutation("processes/memory_maps.py", "array.flags.writeable = writeable", "pass", MAPS),
    Mutation("processes/memory_maps.py", ' or mode == "c"', "", MAPS_COPIED),
    Mutation("processes/memory_maps.py", " or not os.path.isfile(path)", "", MAPS_COPIED),
    Mutation("processes/memory_maps.py", "            del reducers[kind]", "            pass", MAPS_OF_WORKERS),
    Mutation("loading/split_loader.py", "with sent_to_workers(), held", "with held", MAPS_OF_WORKERS),
    Mutation(
        "loading/iterable_loader.py",
        "with sent_to_workers(), held_back(_IGNORED_BY_WORKERS):\n                iterator = iter(",
        "if True:\n                iterator = iter(",
        MAPS_OF_WORKERS,
    ),
    # Where two runs diverged.
    Mutation("tools/diff.py", "if found[0] not in WHERE_ONLY", "if not found", DIFF + "[option]"),
    Mutation("tools/diff.py", "order = sample_order", "order = range(length) or sample_order", DIFF + "[one sample]"),
    Mutation(
        "tools/diff.py",
        "return None if torch.equal(a, b) else",
        "return None if True else",
        "tools/test_diff.py::test_quantized_tensors_are_compared_with_their_scales",
    ),
    Mutation("tools/diff.py", "wide = torch.complex128", "return None; wide = torch.complex128", DIFF + "[seed]"),
    # Sharded checkpoints.
    Mutation(
        "checkpoints/sharded.py",
        "damaged = archive.testzip()",
        "damaged = None",
        SHARDED + "test_a_flipped_bit_of_a_tensor_is_noticed",
    ),
    Mutation(
        "checkpoints/sharded.py",
        "or path.stat().st_size < end:",
        "or False:",
        SHARDED + "test_a_truncated_file_is_noticed",
    ),
    Mutation(
        "file_errors.py",
        "raise first from None",
        "raise",
        SHARDED + "test_a_full_disk_of_one_rank_is_an_oserror_on_all_and_leaves_the_earlier_checkpoints",
    ),
    Mutation("checkpoints/sharded.py", "name: tensor.detach() for", "name: tensor.full_tensor() for", STAYS_SHARDED),
    Mutation(
        "checkpoints/sharded.py",
        "if self._stager is None:",
        "if self._stager is None and [tensor.full_tensor() for tensor in distinct.values()]:",
        STAYS_SHARDED,
    ),
    Mutation(
        "checkpoints/sharded.py",
        "empty(*shape, dtype=dtype, device_mesh=mesh, placements=placements)",
        "torch.empty(shape, dtype=dtype)",
        STAYS_SHARDED,
    ),
    # Optimizers of sharded networks.
    Mutation("networks/sharded_optimizers.py", "(Adafactor, Muon, Rprop)", "(Adafactor, Rprop)", SHARDED + GO_ON),
    Mutation("networks/sharded_optimizers.py", "(Adafactor, Muon, Rprop)", "(Muon, Rprop)", SHARDED + ANY_NUMBER),
    Mutation("networks/sharded_optimizers.py", "(Adafactor, Muon, Rprop)", "(Adafactor, Muon)", SHARDED + ANY_NUMBER),
    Mutation("networks/sharded_optimizers.py", "full.grad = full_tensor(p.grad)", "full.grad = full", SHARDED + GO_ON),
    Mutation(
        "networks/sharded_optimizers.py",
        "{name: _like_parameter(value, p) for name, value in one.state[full].items()}",
        "one.state[full]",
        SHARDED + "test_the_tensors_are_in_the_shards_once_under_the_names_of_parameters",
    ),
    Mutation("networks/sharded_optimizers.py", '{"step", "eta", "mu", "mu_product"}', "set()", SHARDED + GO_ON),
    Mutation(
        "networks/sharded_optimizers.py", "if is_of_file and not is_number else", "if False else", SHARDED + GO_ON
    ),
    Mutation("networks/sharded_optimizers.py", "if isinstance(key, int) and", "if", SHARDED + ANY_NUMBER),
    Mutation(
        "networks/parallel.py", "post_hook(sharded_optimizers.settle_states)", "post_hook(print)", SHARDED + GO_ON
    ),
    Mutation("networks/parallel.py", "sharded_optimizers.check_can_step(name, part)", "pass", NETWORKS + CANNOT_STEP),
    Mutation("networks/fsdp.py", "note_of_step(error) or _words(", "_words(", NETWORKS + CANNOT_STEP),
    Mutation(
        "networks/sharded_optimizers.py",
        "if any(value is not None for value in (*args[1:], *kwargs.values())):",
        "if False:",
        NETWORKS + CANNOT_STEP,
    ),
    Mutation(
        "networks/dtensors.py", "if not all(placement.is_replicate() for", "if not any(True for", NETWORKS + CANNOT_STEP
    ),
    Mutation(
        "networks/dtensors.py", "partial(handlers.pop, operation, None)", "partial(print)", NETWORKS + CANNOT_STEP
    ),
    Mutation("checkpoints/sharded_content.py", "value = settled(value)", "pass", SHARDED + ANY_NUMBER),
    Mutation("checkpoints/sharded.py", 'place["dim"] = dim', "pass", SHARDED + ANY_NUMBER),
    Mutation("checkpoints/sharded.py", "dims[name] not in range(len(shape))", "False", ONLY_WHOLE),
    Mutation("networks/dtensors.py", "named(remove_duplicate=False)", "named()", SHARDED + ANY_NUMBER),
    Mutation("callbacks.py", "load_any_placement(self.averaged.module)", "pass", SHARDED + ANY_NUMBER),
    Mutation("checkpoints/sharded_content.py", "{names.get(prefix, prefix)}", "{prefix}", SHARDED + SHARD_NAMES),
    Mutation(
        "checkpoints/sharded_content.py",
        "first.setdefault(memory, name) if local.numel() > 0 else name",
        "name",
        SHARDED + SHARD_NAMES,
    ),
    Mutation(
        "networks/dtensors.py",
        "        if is_main:\n",
        "        if True:\n",
        SHARDED + "test_the_weights_for_a_file_of_their_own_are_gathered_on_rank_0",
    ),
    Mutation(
        "checkpoints/sharded.py",
        "return self._metadata\n",
        "return super().read_metadata(*args, **kwargs)\n",
        SHARDED + "test_metadata_of_dcp_has_no_effect_whatever_it_holds",
    ),
    Mutation("checkpoints/sharded.py", "if not is_inside or not is_in_file:", "if not is_in_file:", ONLY_WHOLE),
    Mutation("checkpoints/sharded.py", "if not is_inside or not is_in_file:", "if not is_inside:", ONLY_WHOLE),
    Mutation("checkpoints/sharded.py", "file == PurePath(file).name and ", "", ONLY_WHOLE),
    Mutation("checkpoints/sharded.py", " and length >= chunk.sizes.numel() * dtype.itemsize", "", ONLY_WHOLE),
    Mutation(
        "checkpoints/sharded.py",
        "if sum(chunk.sizes.numel() for chunk in chunks) != shape.numel():",
        "if False:",
        ONLY_WHOLE,
    ),
    Mutation("checkpoints/files.py", "path.rename(named)", "shutil.rmtree(path)", SHARDED + HALF_WRITTEN),
    Mutation(
        "checkpoints/files.py",
        'r"\\..+\\.\\d+\\.shards\\.tmp" if path',
        'r"none" if path',
        SHARDED + HALF_WRITTEN,
    ),
    Mutation(
        "checkpoints/sharded.py",
        "place.offset, place.length)",
        "0, place.length)",
        SHARDED + "test_places_are_those_of_the_metadata_of_dcp",
    ),
    Mutation(
        "checkpoints/sharded.py",
        "if name not in metadata.state_dict_metadata:",
        "if False:",
        SHARDED + "test_a_folder_without_places_is_refused",
    ),
    Mutation("checkpoints/reading.py", "if all(reasons):", "if error is not None:", SHARDED + ONE_RANK_CANNOT),
    Mutation("checkpoints/reading.py", "if reason is not None:", "if False:", SHARDED + ONE_RANK_CANNOT),
    # Files, and signals in one process.
    Mutation(
        "checkpoints/folder.py",
        "raise\n            except (files.CheckpointError, FileNotFoundError) as",
        "continue\n            except (files.CheckpointError, FileNotFoundError) as",
        NOT_REPLACED + "[auto]",
    ),
    Mutation(
        "checkpoints/folder.py",
        "raise\n            except (files.CheckpointError, FileNotFoundError):",
        "continue\n            except (files.CheckpointError, FileNotFoundError):",
        NOT_REPLACED + "[test best]",
    ),
    Mutation(
        "checkpoints/files.py",
        'if content["format"] != FORMAT_VERSION:',
        'if content["format"] > FORMAT_VERSION:',
        INTERRUPTS + "test_a_run_folder_of_an_older_format_is_refused_in_one_line_and_stays_as_it_was",
    ),
    Mutation("checkpoints/files.py", "damaged = archive.testzip()", "damaged = None", PASS_OVER),
    Mutation(
        "checkpoints/files.py",
        "weights_only=True, mmap=mmap",
        "weights_only=False, mmap=mmap",
        "checkpoints/test_files.py::test_code_in_a_file_is_never_run",
    ),
    Mutation(
        "checkpoints/files.py",
        "weights_only=True, mmap=True",
        "weights_only=False, mmap=True",
        PASS_OVER,
    ),
    Mutation(
        "checkpoints/files.py",
        'path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")',
        "path",
        FOLDER + "test_a_full_disk_is_an_oserror_and_leaves_the_earlier_files_as_they_were",
    ),
    Mutation(
        "checkpoints/folder.py",
        "self._snapshot.copy(content)",
        "content",
        INTERRUPTS + "test_the_file_is_the_moment_of_the_save_even_if_the_weights_change_at_once",
    ),
    Mutation(
        "checkpoints/folder.py",
        "if error is not None:",
        "if False:",
        INTERRUPTS + "test_an_error_in_the_background_surfaces_at_the_next_save_or_at_the_end",
    ),
    Mutation(
        "checkpoints/lock.py",
        "fcntl.lockf(file",
        "fcntl.flock(file",
        INTERRUPTS + "test_a_second_run_in_the_folder_is_refused_and_a_dead_ones_lock_is_not",
    ),
    Mutation(
        "checkpoints/lock.py",
        " | os.O_NOFOLLOW",
        "",
        FOLDER + "test_a_lock_that_is_a_link_is_refused_and_its_target_is_left_alone",
    ),
    Mutation(
        "checkpoints/lock.py",
        "if resolved in _locked_here:",
        "if False:",
        FOLDER + "test_threads_that_race_for_a_new_folder_get_it_or_are_told_that_another_run_is_there",
    ),
    Mutation(
        "training/loop.py",
        "checkpoints.best(best_step)",
        "checkpoints.best()",
        FOLDER + "test_without_kept_best_files_the_best_checkpoint_is_the_best_or_none",
    ),
    Mutation(
        "checkpoints/manifest.py",
        '        self.found |= {entry["file"] for entry in missing}\n',
        "",
        FOLDER + "test_a_file_whose_entry_was_lost_counts_as_the_best_and_is_never_deleted",
    ),
    Mutation(
        "checkpoints/manifest.py",
        "if not _is_valid(entry):",
        "if False:",
        FOLDER + "test_a_wrong_entry_is_ignored_with_a_warning_that_names_the_manifest",
    ),
    Mutation(
        "checkpoints/folder.py",
        "if owner != self.save_name:",
        "if False:",
        FOLDER + "test_models_whose_names_give_the_same_file_names_do_not_share_checkpoints",
    ),
    Mutation(
        "metrics/rows.py",
        'is_expected = rows == 0 or (found == ["train"] * missing and num_found == rows)',
        "is_expected = True",
        "test_loggers.py::test_a_damaged_file_is_opened_with_a_warning_that_has_its_name_and_the_rows",
    ),
    Mutation(
        "checkpoints/folder.py",
        "if self._counters(path)[0] == step and self._is_readable(path)",
        "if self._counters(path)[0] == step",
        FOLDER + "test_a_damaged_file_is_not_named_as_the_best",
    ),
    Mutation(
        "checkpoints/files.py",
        'else r"\\..+\\.\\d+\\.tmp"',
        'else r".*\\.tmp"',
        "checkpoints/test_damaged_folders.py::test_a_run_with_damaged_files_ends_like_one_without_or_names_the_file",
    ),
    Mutation(
        "arguments.py",
        ' or ".." in path.parts',
        "",
        "test_options.py::test_a_wrong_value_is_a_value_error_that_begins_with_the_option",
    ),
    Mutation(
        "model_internals/inference.py",
        "    check_device(device)\n",
        "",
        "test_model.py::test_a_device_that_is_not_there_is_not_told_as_a_damaged_file",
    ),
    Mutation(
        "loading/workers.py",
        "signal.signal(number, signals.do_nothing)",
        "signal.signal(number, signal.SIG_DFL)",
        INTERRUPTS + "test_a_loading_process_ignores_ctrl_c",
    ),
    Mutation(
        "trainer.py",
        'ShortTraceback(), shutdown.at_once():\n            call = self._call("predict", model, datamodule, shutdown)\n'
        "            from helios_lite.calls.predict import predict\n",
        'shutdown.at_once():\n            call = self._call("predict", model, datamodule, shutdown)\n'
        "            from helios_lite.calls.predict import predict\n",
        "processes/test_signals.py::test_a_ctrl_c_in_the_first_moment_of_any_call_leaves_it_with_the_users_lines_only",
    ),
    *(
        Mutation(f"processes/{file}.py", old, new, FIRST_MOMENT)
        for file, old, new in (
            ("forkserver", "signal.SIG_DFL)  # It dies of it", "signal.default_int_handler)  # It dies of it"),
            ("forkserver", "receive_again(signal.SIGTERM)", "receive_again(*SIGNALS)"),
            (
                "forkserver",
                "signal.signal(signal.SIGUSR1, keep_for_call)",
                "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
            ),
            ("signals", "signal.raise_signal(_kept.pop())", "_kept.pop()"),
        )
    ),
    Mutation(
        "processes/forkserver.py",
        "    receive_again(signal.SIGINT, signal.SIGUSR1)\n",
        "",
        "processes/test_forkserver.py::test_a_process_holds_no_signal_back_when_it_imports_the_program",
    ),
    Mutation("loading/workers.py", "isinstance(error, EOFError | ConnectionError)", "False", NOT_TAKEN),
    Mutation(
        "loading/workers.py",
        "        sys.excepthook = functools.partial(_show_unless_parent_has_left, sys.excepthook)\n",
        "",
        NOT_TAKEN,
    ),
    Mutation("loading/workers.py", "if phase in (signals.OUTSIDE, signals.ENDING):", "if False:", AN_EXCEPTION),
    Mutation("processes/signals.py", "self._phase.value = self._previous_phase", "pass", AN_EXCEPTION),
    Mutation(
        "loading/workers.py",
        "if phase in (signals.OUTSIDE, signals.ENDING):",
        "if True:",
        INTERRUPTS + "test_sigterm_to_the_whole_group_finishes_the_step_with_loading_processes",
    ),
    Mutation(
        "loading/workers.py",
        "while is_alive(self._parent):",
        "while True:",
        INTERRUPTS + "test_loading_processes_of_a_killed_training_end_by_themselves",
    ),
    Mutation("training/stopping.py", '"interrupted" if signal is not None else None', "None", A_SIGNAL),
    Mutation(
        "processes/signals.py",
        "signal.signal(number, signal.SIG_DFL if handler is None else handler)",
        "pass",
        A_SIGNAL,
    ),
    # Learning rates and times of rows.
    Mutation("training/loop.py", "if should_log or not knows_last:", "if should_log:", UNKNOWN_END),
    Mutation("training/training_log.py", 'self._rates.restore(state_dict["rates"])', "pass", UNKNOWN_END),
    Mutation(
        "training/training_log.py",
        "self._epoch_time = Stopwatch(None)\n        if ends_epoch",
        "pass\n        if ends_epoch",
        ROWS,
    ),
    Mutation(
        "metrics/measurements.py",
        "self.used.get(name, learning_rates(optimizer))",
        "learning_rates(optimizer)",
        RATES,
    ),
    Mutation(
        "metrics/measurements.py", "handle.remove()", "pass", LEARNING_RATES + "test_no_hook_is_left_after_an_error"
    ),
    Mutation(
        "training/loop.py",
        """            if should_log or not knows_last:
                self.log.expect_row(data if should_log else None)
""",
        """            self.log.expect_row()
""",
        LEARNING_RATES + "test_the_rate_is_read_in_steps_of_logging_steps_only",
    ),
    Mutation(
        "training/training_log.py",
        "self._epoch_time.stop(now)",
        "pass",
        TRAINING + "test_the_time_of_an_epoch_leaves_out_validations_and_saves",
    ),
    Mutation("training/training_log.py", 'Stopwatch(state_dict["row_seconds"])', "Stopwatch(0.0)", RESUMED_TIMES),
    Mutation("training/training_log.py", 'Stopwatch(state_dict["epoch_seconds"])', "Stopwatch(0.0)", RESUMED_TIMES),
    # Metrics that are computed from others.
    Mutation(
        "training/hook_dispatch.py",
        "listener.process_metrics(phase, dict(metrics))",
        "listener.process_metrics(phase, metrics)",
        CALLBACKS_SEE,
    ),
    Mutation("training/hook_dispatch.py", "metrics |= _checked_metrics(", "_checked_metrics(", CALLBACKS_SEE),
    Mutation(
        "training/hook_dispatch.py",
        "with context.refuse_log():",
        "if True:",
        PROCESS_METRICS + "test_log_is_an_error_there_and_works_afterwards",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "return context.world.broadcast(metrics)",
        "return metrics",
        DISTRIBUTED + "test_metrics_that_are_computed_from_others_are_those_of_one_process",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "values[name] = float(value)",
        "values[name] = value",
        PROCESS_METRICS + "test_a_number_of_any_kind_becomes_a_float_that_a_checkpoint_can_hold",
    ),
    Mutation(
        "training/training_log.py",
        'self._session.hooks.process_metrics("train", values) if values else {}',
        "values",
        PROCESS_METRICS + "test_values_that_no_row_holds_are_completed_in_the_result",
    ),
    Mutation(
        "training/training_log.py",
        'self._session.hooks.process_metrics("train", _completed(summary.values, self._rates.take()))',
        "_completed(summary.values, self._rates.take())",
        ADDED_EVERYWHERE,
    ),
    Mutation(
        "training/evaluator.py",
        "return session.hooks.process_metrics(phase, values)",
        "return values",
        ADDED_EVERYWHERE,
    ),
    # Running losses over all ranks.
    Mutation("metrics/score_tables.py", "value if share == 1.0 else value * share", "value", RUNNING_LOSSES),
    Mutation("metrics/score_tables.py", "self._tables.reduce_losses(self._context.world)", "pass", RUNNING_LOSSES),
    Mutation(
        "model_internals/run_context.py",
        "if should_log or self.world.size == 1:",
        "if self.world.size == 1:",
        RUNNING_LOSSES,
    ),
    Mutation(
        "metrics/score_tables.py",
        "if rank % world.size == world.rank:",
        "if False:",
        DISTRIBUTED + "test_running_losses_of_a_resumed_run_are_those_of_one_that_was_not_stopped",
    ),
    Mutation(
        "metrics/score_tables.py",
        "value.to(sum_dtype(value.device))",
        "value",
        "test_model.py::test_running_losses_are_up_to_date_after_every_batch_and_summed_in_full_precision",
    ),
    Mutation(
        "metrics/score_tables.py",
        "if loss is None:",
        "if False:",
        "test_model.py::test_a_loss_that_is_none_is_an_error_that_names_it",
    ),
    # Several reductions, metrics beside the bar, what ranks gather.
    Mutation(
        "metrics/accumulator.py",
        'raise TypeError(f"log({name!r}): {error}") from None',
        "raise",
        "metrics/test_accumulator.py::test_what_is_no_number_is_an_error_that_names_the_metric",
    ),
    Mutation(
        "metrics/accumulator.py",
        'name if i == 0 else f"{name}/{each}"',
        'f"{name}/{each}"',
        TRAINING + "test_several_reductions_of_one_value_are_metrics_of_their_own_also_after_a_resume",
    ),
    Mutation(
        "metrics/accumulator.py",
        " or len(set(reduce)) < len(reduce)",
        "",
        TRAINING + "test_no_reduction_or_one_twice_is_an_error_that_names_the_metric",
    ),
    Mutation(
        "training/training_report.py",
        "for name in context.shown if name in context.latest",
        "for name in ()",
        BAR_METRICS,
    ),
    Mutation(
        "model_internals/run_context.py",
        'return self.world.gather(DeviceMover(torch.device("cpu"))(value))',
        "return [value]",
        DISTRIBUTED + "test_what_ranks_gather_is_what_one_process_has_collected",
    ),
    # Several processes: what comes back, and what only one does.
    Mutation(
        "training/session.py",
        "options.loggers if self.world.is_main else ()",
        "options.loggers",
        DISTRIBUTED + "test_loggers_are_called_and_closed_on_rank_0_alone",
    ),
    Mutation(
        "calls/launching.py",
        "set_up_trained(model, content, options, datamodule, folder, PlannedSteps(options, train_data))",
        "pass",
        LAUNCH + "test_the_result_and_the_final_weights_come_back",
    ),
    Mutation("calls/launching.py", "            datamodule.setup()\n", "", AS_AFTER_ONE_PROCESS),
    Mutation("calls/launching.py", "if not call.trains", "if call.trains", AS_AFTER_ONE_PROCESS),
    Mutation(
        "model_internals/inference.py", 'torch.device("cpu"), *of_run)', 'torch.device("cpu"))', AS_AFTER_ONE_PROCESS
    ),
    Mutation("model_internals/inference.py", 'content.get("hparams")', "None", AS_AFTER_ONE_PROCESS),
    Mutation("model_internals/inference.py", 'context.record(content["metrics"])', "pass", AS_AFTER_ONE_PROCESS),
    Mutation(
        "calls/launching.py",
        "except Exception as error:\n        logger.warning(",
        "except ArithmeticError as error:\n        logger.warning(",
        LAUNCH + "test_a_result_is_not_lost_if_the_model_cannot_be_set_up_in_the_calling_process",
    ),
    Mutation(
        "calls/launching.py",
        'with rng.fork_rng(torch.device("cpu")), cleanup',
        "with cleanup",
        LAUNCH + "test_taking_over_what_other_processes_have_trained_uses_no_random_numbers_of_the_caller",
    ),
    Mutation(
        "training/loop.py",
        "return session.world.broadcast(result)",
        "return result",
        DISTRIBUTED + "test_fit_and_test_return_the_same_on_every_rank",
    ),
    Mutation(
        "processes/signals.py", "announces and not is_worker", "announces", LAUNCH + "test_ctrl_c_saves_and_ends_all"
    ),
    Mutation("processes/signals.py", 'and os.environ.get("LOCAL_RANK", "0") == "0"', "", CTRL_C_UNDER_TORCHRUN),
    Mutation(
        "processes/signals.py",
        "            return\n        if self._announces and",
        "            pass\n        if self._announces and",
        INTERRUPTS + "test_a_sigterm_after_ctrl_c_changes_nothing",
    ),
    Mutation("processes/launch.py", "if id(value) in parents:", "if False:", CANNOT_BE_SENT),
    Mutation(
        "processes/launch.py",
        "_write_task(function, arguments, folder)\n",
        "before_start()\n        _write_task(function, arguments, folder)\n",
        CANNOT_BE_SENT,
    ),
    # Several processes: one of them fails.
    Mutation("processes/worker.py", "exit_now(1)", "raise", TROUBLE),
    Mutation("processes/worker.py", "time.sleep(0.5)", "pass", TROUBLE),
    Mutation("processes/launch.py", "if not error_file(folder, attempt, failure.rank).exists():", "if False:", TROUBLE),
    Mutation(
        "processes/rank_watch.py",
        "if ended not in (0, UNKNOWN) or status is None or not status.is_done:",
        "if ended:",
        FAILURES,
    ),
    Mutation("processes/rank_watch.py", '!= "T":', '!= "x":', FAILURES),
    Mutation("processes/launch.py", "and self._watch.failure is None:", "and True:", FAILURES),
    Mutation(
        "processes/rank_watch.py",
        "status is None or not status.is_done:",
        "False:",
        "processes/test_failures.py::test_nothing_waits_for_processes_that_have_all_exited_with_status_0",
    ),
    Mutation(
        "processes/rank_watch.py",
        "status is None or not",
        "status is not None and not",
        "processes/test_failures.py::test_processes_that_end_with_status_0_before_their_task_end_the_run",
    ),
    Mutation(
        "processes/rank_watch.py",
        "error_file(self._folder, self._attempt, failure.rank).exists()",
        "0",
        "processes/test_failures.py::"
        "test_a_process_that_was_ended_is_the_cause_and_not_the_exception_of_a_rank_that_has_lost_it",
    ),
    Mutation(
        "processes/rank_watch.py",
        "None if status == UNKNOWN and is_alive(process.pid or 0) else status",
        "status",
        SERVER_DIES,
    ),
    Mutation("processes/rank_watch.py", "not in (0, UNKNOWN)", "!= 0", SERVER_DIES),
    Mutation("processes/rank_watch.py", "self.received = signal.Signals(status.received)", "pass", ALONE),
    Mutation(
        "processes/rank_watch.py",
        "min(time.monotonic() - self._polled, 0.5)",
        "time.monotonic() - self._polled",
        "processes/test_failures.py::test_a_job_that_is_suspended_as_by_ctrl_z_goes_on_afterwards",
    ),
    Mutation(
        "processes/peers.py",
        "is_alive(parent) and not end.exists() and polls",
        "polls",
        LAUNCH + "test_processes_whose_parent_was_killed_end_by_themselves",
    ),
    Mutation(
        "processes/launch.py",
        "send_signal(process, signal.SIGTERM if rank in started else signal.SIGKILL)",
        "pass",
        SIGTERM,
    ),
    # Several processes: they begin as copies of one.
    Mutation("processes/forkserver.py", 'method, name = "forkserver", _Name(name)', "pass", COPIES),
    Mutation("processes/forkserver.py", '"forkserver", _Name(name)', '"forkserver", name', COPIES),
    Mutation("processes/forkserver.py", "os.environ.clear()", "pass", COPIES),
    Mutation("processes/forkserver.py", "torch.default_generator.seed()", "pass", COPIES),
    Mutation("processes/forkserver.py", "numpy.random.seed()", "pass", COPIES),
    Mutation("processes/forkserver.py", "if not is_alive(_server._forkserver_pid):", "if False:", COPIES),
    Mutation(
        "processes/rank_watch.py",
        "if exit_status(process) is None:",
        "if process.exitcode is None:",
        LAUNCH + "test_a_sigterm_to_the_parent_or_to_one_rank_saves_and_ends_all",
    ),
    Mutation("processes/forkserver.py", '{"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}', "{}", COPIES),
    Mutation("processes/forkserver.py", "    _restore(json.loads(os.environ[_RESTORED]))", "    pass", COPIES),
    Mutation("processes/forkserver.py", "return files, umask and umask[0]", "return None", COPIES),
    Mutation("processes/worker.py", "multiprocessing.set_start_method(start_method, force=True)", "pass", COPIES),
    Mutation("processes/worker.py", "atexit._run_exitfuncs()", "pass", COPIES),
    Mutation("processes/worker.py", "thing.flush()", "pass", COPIES),
    Mutation("processes/forkserver.py", '_server._preload_modules != ["__main__"]', "False", OWN_SERVER),
    Mutation("processes/forkserver.py", "_inherited_by_server(os.getpid())", "_inherited_by_server(0)", FORKED),
    Mutation("processes/forkserver.py", "_server._forkserver_pid is not None or", "", OWN_SERVER),
    Mutation(
        "processes/launch.py",
        "break  # The signal",
        "pass  # The signal",
        LAUNCH + "test_a_sigterm_while_processes_are_starting_ends_them_without_a_restart",
    ),
    Mutation(
        "processes/launch.py",
        "range(max_restarts + 1)",
        "range(1)",
        LAUNCH + "test_a_killed_rank_starts_all_again_and_the_end_is_the_same",
    ),
    Mutation(
        "training/stopping.py",
        "if signal is not None:  #",
        "if True:  #",
        DISTRIBUTED + "test_a_signal_that_comes_during_an_exchange_is_not_lost",
    ),
    Mutation(
        "training/stopping.py",
        "self._session.options, self._clock.shared_seconds, self._start)",
        "self._session.options, self._state.seconds, self._start)",
        DISTRIBUTED + "test_ranks_whose_clocks_differ_stop_and_save_together",
    ),
    Mutation(
        "training/checkpointer.py",
        "self._saved_seconds = (state.step, state.epoch), self._clock.shared_seconds",
        "self._saved_seconds = (state.step, state.epoch), state.seconds",
        DISTRIBUTED + "test_ranks_whose_clocks_differ_stop_and_save_together",
    ),
    Mutation(
        "training/session.py",
        "self.context.parallel.refresh()",
        "pass",
        DISTRIBUTED + "test_a_sharded_network_is_saved_after_a_forward_pass_without_a_backward_pass",
    ),
    Mutation(
        "training/evaluator.py",
        "is_idle |= done == 0",
        "pass",
        DISTRIBUTED + "test_a_rank_without_a_batch_of_one_of_several_splits_is_idle",
    ),
    # Several processes: what they compute.
    Mutation("networks/precision.py", "return weight / self._world.size", "return weight", LIKE_ONE),
    Mutation("loading/split_loader.py", "size * self._num_averaged / max", "size / max", LIKE_ONE),
    Mutation(
        "training/loop.py",
        "parallel.begin_micro_batch(completes_step)",
        "pass",
        DISTRIBUTED + "test_gradients_are_reduced_once_per_accumulation_window",
    ),
    Mutation(
        "training/session.py",
        "rng.seed_all(rng.derive_seed(options.seed, self.world.rank))",
        "pass",
        ITS_OWN_GENERATORS,
    ),
    Mutation("training/checkpointer.py", "by_rank[world.rank] if", "by_rank[0] if", ITS_OWN_GENERATORS),
    Mutation(
        "loading/train_data.py",
        "by_rank[self._world.rank if len(by_rank) == self._world.size else 0]",
        "by_rank[0]",
        DISTRIBUTED + "test_each_rank_gets_the_state_of_its_loader_back",
    ),
    Mutation("loading/train_data.py", "            self._check_number_of_ranks()\n", "            pass\n", OTHER_SIZE),
    Mutation(
        "loading/train_data.py",
        "if self._restored and loader.takes_state():\n",
        "if self._restored:\n",
        OTHER_SIZE,
    ),
    Mutation("training/checkpointer.py", "if len(ranks) != world.size:", "if False:", OTHER_SIZE),
    Mutation(
        "networks/parallel.py",
        "for module in self._with_buffers\n",
        "for module in self._with_buffers[:0]\n",
        DISTRIBUTED + "test_all_ranks_evaluate_with_the_buffers_of_rank_0",
    ),
    Mutation(
        "callbacks.py",
        "for kind in (True, False):  # One operation",
        "for is_dtensor, kind in [(lambda _: True, True)]:  # One operation",
        DISTRIBUTED + "test_all_ranks_evaluate_with_the_buffers_of_rank_0",
    ),
    Mutation(
        "training/evaluator.py",
        "context.parallel.share_buffers()  #",
        "pass  #",
        DISTRIBUTED + "test_all_ranks_evaluate_with_the_buffers_of_rank_0",
    ),
    Mutation(
        "networks/parallel.py",
        "dist.all_reduce(message if is_main else message.zero_())",
        "pass",
        DISTRIBUTED + "test_all_ranks_evaluate_with_the_buffers_of_rank_0",
    ),
    Mutation(
        "networks/parallel.py",
        "state._comm_ctx.post_forward_order.clear()",
        "pass",
        DISTRIBUTED + "test_a_sharded_network_trains_on_after_a_validation_without_a_batch_for_some_ranks",
    ),
    Mutation(
        "metrics/accumulator.py",
        " if not one.is_restored}",
        "}",
        DISTRIBUTED + "test_ranks_that_a_checkpoint_does_not_have_need_not_have_logged_what_it_restores",
    ),
    # Sharded networks.
    Mutation(
        "networks/parallel.py",
        "module.set_reshard_after_forward(True, recurse=False)",
        "module.set_reshard_after_forward(False, recurse=False)",
        NETWORKS + "test_an_evaluation_gathers_one_block_at_a_time_though_ranks_have_different_numbers_of_batches",
    ),
    Mutation("networks/fsdp.py", "if module not in units:", "if module is not net:", ON_META),
    Mutation("networks/meta_device.py", "tensor.copy_(values)", "pass", ON_META),
    Mutation("networks/meta_device.py", "vars(new).update(vars(tensor))", "pass", MARKED),
    Mutation("networks/fsdp.py", "vars(p).update(attributes[name])", "pass", MARKED),
    Mutation("networks/fsdp.py", "if any(attributes.values()):", "if False:", MARKED),
    Mutation("networks/gather_order.py", "        _note(self._order, self._index)\n", "", OTHER_BLOCKS),
    Mutation("networks/gather_order.py", "hook_gradient(p, functools", "str(functools", OTHER_BLOCKS),
    Mutation("networks/gather_order.py", "elif any(id(p) in self._parameters", "elif any(False", OTHER_BLOCKS),
    Mutation("networks/parallel.py", "self._order.compare(optimizer)", "pass", OTHER_BLOCKS),
    Mutation("networks/forward_turns.py", "value.register_hook(_refuse)", "pass", BACKWARD_IN_EVALUATION),
    Mutation("networks/parallel.py", "(is_sharded or id(p) not in present)", "id(p) not in present", SHARED_BY_TWO),
    Mutation("networks/parallel.py", "(is_sharded or id(p) not in present)", "is_sharded", SHARED_BY_TWO),
    Mutation("networks/parallel.py", "(is_sharded or id(p) not in present)", "True", SHARED_BY_TWO),
    Mutation("networks/parallel.py", "or self._owner(p) for p in others", "for p in others", SHARED_BY_TWO),
    Mutation("networks/parallel.py", 'return {**vars(self), "_owners": {}}', "return vars(self)", SENT),
    Mutation("networks/fsdp.py", "not torch.is_autocast_enabled(self._device_type)", "True", IN_BF16),
    Mutation("networks/fsdp.py", "not torch.is_autocast_enabled(self._device_type)", "False", IN_BF16),
    Mutation("networks/fsdp.py", "name: p.float() for name, p in in_bf16", "name: p for name, p in in_bf16", IN_BF16),
    Mutation("networks/fsdp.py", "parameters.update(gathered)", "pass", IN_BF16),
    Mutation("networks/fsdp.py", 'precision == "bf16" and ("dtype"', 'False and ("dtype"', IN_BF16),
    Mutation("networks/fsdp.py", "if p._backward_hooks or (", "if (", MARKED),
    Mutation("networks/parallel.py", "named_parameters() if p.ndim > 0)", "named_parameters() if False)", MARKED),
    Mutation("networks/parallel.py", "(is_sharded and p.ndim > 0) or not can", "not can", MARKED),
    Mutation(
        "networks/parallel.py",
        "functools.partial(_itself, p) if is_swapped else weakref.ref(p)",
        "weakref.ref(p)",
        NETWORKS + "test_parameters_of_classes_that_pytorch_moves_by_swapping_can_be_moved_again",
    ),
    Mutation(
        "networks/parallel.py",
        "            check_version()\n",
        "",
        NETWORKS + "test_a_version_that_ends_with_other_weights_is_an_error",
    ),
    Mutation("networks/parallel.py", " or not can_replace_memory(p, self.device)", "", MARKED),
    Mutation("networks/meta_device.py", "torch.nan if _can_be_nan(new) else 0", "0", UNFILLED),
    Mutation("networks/meta_device.py", "complex(torch.nan, torch.nan)", "0", UNFILLED),
    Mutation("networks/meta_device.py", "complex(torch.nan, torch.nan)", "torch.nan", UNFILLED),
    Mutation("networks/meta_device.py", "tensor.fill_(1)", "pass", UNFILLED),
    Mutation("networks/meta_device.py", "isinstance(value, Tensor) and value.is_meta", "False", UNFILLED),
    Mutation("networks/meta_device.py", "with fork_rng(self._device):", "if True:", EVERY_KIND),
    Mutation(
        "networks/fsdp.py", "and not p.is_contiguous()", "and False", SITUATIONS + SHARDS + "[TiedBlocks-2-sharded]"
    ),
    Mutation("networks/shard_units.py", "units -= apart", "pass", SITUATIONS + SHARDS + "[TiedBlocks-2-sharded]"),
    Mutation("networks/fsdp.py", "ignored_params=set(scalars(module))", "ignored_params=None", OF_PARTS),
    Mutation("networks/parallel.py", "if scalars(net):", "if False:", OF_PARTS),
    Mutation("networks/parallel.py", "is_dtensor(p) and self._owner(p) is None", "is_dtensor(p)", OF_PARTS),
    Mutation("networks/shard_units.py", "units.update(others)", "pass", UNITS),
    Mutation("networks/shard_units.py", "p.requires_grad and p.ndim > 0", "p.requires_grad", UNITS),
    Mutation("networks/shard_units.py", "p.requires_grad and p.ndim > 0", "p.ndim > 0", UNITS),
    Mutation("networks/shard_units.py", "if len(found) > 1:", "if False:", SITUATIONS + SHARDS + "[Types-2-sharded]"),
    Mutation("networks/shard_units.py", "elif any(p in shared", "elif any(False", UNITS),
    Mutation(
        "networks/parallel.py",
        " and not isinstance(module, NonDynamicallyQuantizableLinear)",
        "",
        SITUATIONS + SHARDS + "[Attention-2-sharded]",
    ),
    Mutation(
        "networks/dtensors.py",
        "kinds[isinstance(tensor, DTensor)]",
        "kinds[0]",
        SITUATIONS + SHARDS + "[FrozenWhole-2-sharded]",
    ),
    Mutation(
        "networks/dtensors.py",
        "norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)",
        "norms[0]",
        SITUATIONS + SHARDS + "[FrozenWhole-2-sharded]",
    ),
    Mutation(
        "networks/gather_order.py",
        "post_backward_final_callback_queued for",
        "post_backward_final_callback_queued and False for",
        SITUATIONS + SHARDS + "[Retried-2-sharded]",
    ),
    Mutation("networks/parallel.py", "block) if own is None else own", "block)", RECOMPUTED),
    Mutation(
        "networks/fsdp.py",
        'if "gloo" in text',
        "if False",
        NETWORKS + "test_a_rank_that_has_lost_another_one_says_what_it_has_gathered",
    ),
    Mutation(
        "networks/gather_order.py",
        "self._names[self._order[-1]] if self._order else None",
        "None",
        "processes/test_hangs.py::test_a_rank_that_was_stopped_is_named_under_torchrun",
    ),
    Mutation("networks/parallel.py", ", context_fn=functools.partial(_buffer_contexts, block)", "", RECOMPUTED),
    Mutation("networks/parallel.py", "            module._buffers.update(buffers)\n", "            pass\n", RECOMPUTED),
    Mutation(
        "networks/fsdp.py",
        "reduce_dtype, output_dtype = torch.bfloat16, torch.float32, None",
        "reduce_dtype, output_dtype = None, torch.float32, None",
        NETWORKS + "test_a_sharded_network_is_gathered_in_bf16_and_keeps_its_weights_in_fp32",
    ),
    Mutation(
        "networks/fsdp.py",
        "reduce_dtype, output_dtype = torch.bfloat16, torch.float32, None",
        "reduce_dtype, output_dtype = torch.bfloat16, torch.bfloat16, None",
        NETWORKS + "test_gradients_are_reduced_in_fp32_under_bf16",
    ),
    Mutation(
        "networks/parallel.py",
        "        if self._reducer is not None:\n            self._reducer.begin_micro_batch(",
        "        [net.set_requires_gradient_sync(completes_step) for net in self._sharded]\n"
        "        if self._reducer is not None:\n            self._reducer.begin_micro_batch(",
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[AccumulatedInTurn-2-sharded]",
    ),
    Mutation("networks/parallel.py", "context_fn=", "preserve_rng_state=False, context_fn=", RECOMPUTED),
    Mutation("networks/parallel.py", "checkpoint_activations(block)", "pass", RECOMPUTED),
    Mutation(
        "networks/parallel.py",
        "for part in blocks or [net]:",
        "for part in [net]:",
        LAUNCH + "test_a_network_compiled_by_blocks_learns_the_same_and_its_checkpoint_needs_no_compiler",
    ),
    Mutation(
        "networks/parallel.py",
        "forward = functools.partial(_forward, block, own)",
        "forward = lambda *args: _forward(block, own, *args)",
        NETWORKS + "test_a_copy_of_a_block_with_recomputed_activations_computes_with_its_own_weights",
    ),
    Mutation(
        "networks/parallel.py",
        'is_hybrid=self._strategy == "hsdp"',
        "is_hybrid=False",
        NETWORKS + "test_shards_of_each_of_two_machines_are_replicated_and_do_what_one_process_does",
    ),
    Mutation("callbacks.py", "if is_dtensor(mine):  # FSDP", "if False:  # FSDP", AVERAGE_OF_SHARDS),
    Mutation("callbacks.py", "                reshard(net)", "                pass", AVERAGE_OF_SHARDS),
    # Windows.
    Mutation("networks/precision.py", "_clear_gradients([*self._trained, *self._noted()])", "pass", LEFT_OUT),
    Mutation("networks/precision.py", "return self._makes_steps is True", "return False", LEFT_OUT),
    Mutation("training/loop.py", "self.state.skipped_steps += window.is_skipped", "pass", LEFT_OUT),
    Mutation("training/loop.py", "self.has_left_out = True", "pass", LEFT_OUT),
    Mutation(
        "networks/precision.py",
        "self._growth = 1 if self._only is optimizer and self.scaler is None else 2",
        "pass",
        WINDOWS + "test_optimizers_that_take_turns_do_not_use_what_the_loss_of_the_other_has_left",
    ),
    Mutation(
        "networks/precision.py",
        "return state if self._makes_steps is None else",
        "return state if True else",
        WINDOWS + "test_a_run_cut_after_any_window_equals_one_that_was_not",
    ),
    Mutation(
        "networks/precision.py",
        "if self._makes_steps is None and self.last_loss is not None:",
        "if False:",
        WINDOWS + "test_a_first_window_that_does_not_step_leaves_nothing_behind",
    ),
    Mutation(
        "networks/precision.py",
        "if self._not_stepped_in_a_row == _MAX_SKIPPED_IN_A_ROW:",
        "if False:",
        WINDOWS + "test_a_model_that_never_steps_is_an_error_in_the_end",
    ),
    Mutation("networks/precision.py", "if self._is_weighted not in (None, weight is not None):", "if False:", MIXED),
    Mutation(
        "networks/precision.py",
        "if weight is not None and _is_known_zero(weight) and (self._parallel is None or self._parallel.skip_pass()):",
        "if False:",
        NO_ITEMS,
    ),
    Mutation(
        "loading/iterable_loader.py",
        "size / max(total, 1)",
        "size / total",
        WINDOWS + "test_an_empty_batch_counts_nothing",
    ),
    # What a call leaves behind.
    Mutation("calls/launching.py", "with rng.callers_rng(), here(call)", "with here(call)", LEAVES_SUCCESS),
    Mutation("calls/predict.py", "with rng.callers_rng():", "if True:", LEAVES_SUCCESS),
    Mutation(
        "display/console.py",
        '    with fork_rng(torch.device("cpu")):\n        from rich.console import Console\n        from rich.panel',
        "    if True:\n        from rich.console import Console\n        from rich.panel",
        LEAVES + "test_what_is_shown_draws_no_random_number",
    ),
    Mutation(
        "loading/batches.py",
        "            iterator._shutdown_workers()\n",
        "            pass\n",
        LEAVES + "test_no_worker_is_left_after_an_exception_of_the_data",
    ),
    Mutation("loading/train_data.py", "            self._loader.close()\n", "            pass\n", LEAVES_ENDED),
    Mutation("training/hook_dispatch.py", "listener.on_exception(error)", "pass", EVALUATION_FAILS),
    Mutation(
        "training/evaluator.py",
        "    finally:\n        model.train()\n",
        "    except ZeroDivisionError:\n        model.train()\n",
        EVALUATION_FAILS,
    ),
    Mutation(
        "training/loop.py",
        "self.log.write_epoch_end()",
        "pass",
        EPOCH_VALUES + "test_a_value_of_the_end_of_an_epoch_is_in_a_row_of_that_epoch",
    ),
    Mutation("training/loop.py", "self.log.dropped(state.epoch_batch > 0)", "self.log.dropped(False)", START_VALUES),
    Mutation(
        "training/loop.py",
        "self.checkpointer.resumed_from is not None):\n            self.hooks",
        "False):\n            self.hooks",
        START_VALUES,
    ),
    Mutation("training/checkpointer.py", "self._session.metrics.reset()", "pass", START_VALUES),
    # Averages.
    Mutation(
        "callbacks.py",
        "if is_first or not mean.is_floating_point():",
        "if is_first:",
        CALLBACKS + "test_an_average_has_the_mean_of_floating_point_values_and_a_copy_of_all_others",
    ),
    Mutation(
        "callbacks.py",
        "_widen(self.averaged.module)",
        "pass",
        CALLBACKS + "test_an_average_of_small_floating_point_numbers_moves_and_resumes",
    ),
    Mutation("callbacks.py", "and self._averaged_model is self.model", "", OTHER_AVERAGE),
    Mutation("training/hook_dispatch.py", "callbacks[name].forget_state()", "pass", OTHER_AVERAGE),
    Mutation(
        "training/hook_dispatch.py",
        "in (model, *reversed(callbacks))",
        "in (model, *callbacks)",
        CALLBACKS + "test_whatever_fails_nothing_of_a_callback_stays_in_the_model",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "for listener in (self._model, *reversed(self._callbacks)):",
        "for listener in (self._model, *self._callbacks):",
        CALLBACKS + "test_whatever_fails_nothing_of_a_callback_stays_in_the_model",
    ),
    Mutation(
        "training/evaluator.py",
        "                session.hooks.report_exception(error)  # Before",
        "                pass  # Before",
        CALLBACKS + "test_whatever_fails_nothing_of_a_callback_stays_in_the_model",
    ),
    Mutation(
        "callbacks.py",
        "{**self._shared(), self.name:",
        "{self.name:",
        CALLBACKS + "test_each_of_several_averages_is_what_it_is_alone_and_the_last_is_evaluated",
    ),
    Mutation(
        "checkpoints/reading.py",
        "{**state[name], **weights[name]}",
        "weights[name]",
        CALLBACKS + "test_each_of_several_averages_is_what_it_is_alone_and_the_last_is_evaluated",
    ),
    Mutation(
        "model_internals/inference.py",
        "expect_evaluation_weights(model)\n",
        "pass\n",
        CALLBACKS + "test_each_of_several_averages_is_what_it_is_alone_and_the_last_is_evaluated",
    ),
    Mutation(
        "callbacks.py",
        "        if saved != self.name:",
        "        if False:",
        CALLBACKS + "test_an_average_of_another_network_in_a_checkpoint_is_an_error_that_names_both",
    ),
    Mutation(
        "training/training_log.py",
        "self._session.context.expect_row(False)",
        "pass",
        CALLBACKS + "test_activations_are_measured_at_log_points_only",
    ),
    Mutation(
        "callbacks.py",
        "for place, value in leaves(output):",
        'for place, value in [("", output)]:',
        CALLBACKS + "test_every_row_has_the_activations_of_the_batch_before_it",
    ),
    Mutation(
        "callbacks.py",
        "torch.stack(calls).mean(0)",
        "calls[-1]",
        CALLBACKS + "test_every_row_has_the_activations_of_the_batch_before_it",
    ),
    Mutation(
        "callbacks.py",
        " and value.numel() > 0:",
        ":",
        CALLBACKS + "test_every_row_has_the_activations_of_the_batch_before_it",
    ),
    Mutation(
        "callbacks.py",
        "self.first <= step <= self.last",
        "step == self.first",
        CALLBACKS + "test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file",
    ),
    Mutation(
        "callbacks.py",
        " and not self.trainer.fast_dev_run:",
        ":",
        CALLBACKS + "test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file",
    ),
    Mutation(
        "callbacks.py",
        'if self._begun > self.first else ""',
        'if False else ""',
        CALLBACKS + "test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file",
    ),
    Mutation(
        "callbacks.py",
        '"""Write the file, if the recording has not ended."""\n        self._write()',
        '"""Write the file, if the recording has not ended."""\n        self._profiler and self._profiler.stop()',
        CALLBACKS + "test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file",
    ),
    Mutation(
        "calls/replay.py",
        "if not isinstance(each, Profile)",
        "if True",
        CALLBACKS + "test_a_profile_ends_with_the_training_and_each_part_of_a_cut_one_has_its_file",
    ),
    # What loaders know.
    Mutation("loading/split_loader.py", "seeding.set_epoch(split.dataset, epoch)", "pass", TOLD),
    Mutation("loading/seeding.py", "if self._tells_epochs and epoch != self._epoch:", "if False:", TOLD),
    Mutation(
        "loading/seeding.py",
        '*(["dataset", "datasets"] if for_training',
        '*(["dataset"] if for_training',
        "loading/test_loaders.py::test_set_epoch_reaches_the_datasets_of_a_dataloader",
    ),
    Mutation("nested.py", "if len(sizes) > 1:", "if False:", NUM_SAMPLES),
    Mutation(
        "loading/iterable_loader.py",
        "return self._count(batch) if known is None else known, batch",
        "return self._count(batch), batch",
        KNOWN_SAMPLES,
    ),
    Mutation(
        "loading/iterable_loader.py",
        "return len(samples), self._collate(samples)",
        "return 1, self._collate(samples)",
        KNOWN_SAMPLES,
    ),
    Mutation(
        "loading/iterable_loader.py",
        "self._stateful = source.dataset if self._is_read_here else iterable",
        "self._stateful = iterable",
        "loading/test_loaders.py::test_the_state_of_a_stream_in_a_split_is_used_to_go_on",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "len({*digests}) == 1:",
        "False:",
        "loading/test_loaders.py::test_a_stream_that_its_workers_do_not_divide_gets_one_warning",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "len({*of_ranks}) == 1:",
        "False:",
        "networks/test_distributed.py::test_a_stream_that_ranks_do_not_divide_is_an_error",
    ),
    Mutation(
        "loading/split_loader.py",
        "self._length = len(split.dataset)  # It may have changed since the last epoch, also by a hook.\n",
        "pass\n",
        "loading/test_loaders.py::test_a_dataset_that_has_grown_is_read_to_its_end_in_the_next_epoch",
    ),
    Mutation(
        "loading/split_loader.py",
        "torch.where(subset_indices < 0, subset_indices + len(whole), subset_indices)",
        "subset_indices",
        "loading/test_loaders.py::test_negative_indices_of_subsets_count_from_the_end",
    ),
    Mutation(
        "metrics/accumulator.py",
        "not value >= self.low and self.low == self.low:",
        "not value >= self.low:",
        "metrics/test_accumulator.py::test_a_nan_stays_in_an_extreme_wherever_it_comes",
    ),
    Mutation(
        "metrics/measurements.py",
        "math.nan if rate is None else float(rate)",
        "float(rate)",
        "metrics/test_learning_rates.py::test_an_optimizer_that_chooses_its_rate_has_none_to_log",
    ),
    Mutation(
        "training/session.py",
        "            model._forget_modes()\n",
        "",
        MISTAKES + "test_what_setup_puts_in_evaluation_mode_stays_in_it_in_a_second_fit_too",
    ),
    Mutation(
        "callbacks.py", "values.std() if values.numel() > 1 else torch", "values.std() if True else torch", SINGLE
    ),
    Mutation(
        "callbacks.py",
        '"""Remove the hooks."""\n        self._remove()\n        self._measured.clear()',
        '"""Remove the hooks."""',
        SINGLE,
    ),
    # What a reading has found.
    Mutation(
        "loading/seeding.py",
        'name == "datasets" and isinstance(value, list | tuple)',
        "isinstance(value, list | tuple)",
        "loading/test_loaders.py::test_a_list_of_many_samples_or_indices_is_not_searched_for_datasets",
    ),
    Mutation(
        "loading/split_loader.py",
        "        self._length = len(split.dataset)  # It may",
        "        if samples == 0:\n            self._length = len(split.dataset)  # It may",
        "loading/test_loaders.py::test_the_length_is_that_of_the_epoch_that_the_dataset_was_told_also_when_it_is_resumed",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "return self._is_read_here and size < self._iterable.batch_size",
        "return False",
        "loading/test_loaders.py::test_a_stream_that_has_ended_in_a_partial_batch_is_not_read_again_after_a_resume",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "has_state and (limit is None or not is_training(phase))",
        "has_state",
        "loading/test_loaders.py::test_a_stream_with_a_state_may_be_limited",
    ),
    Mutation(
        "loading/batches.py",
        "loader._iterator = None  # The next epoch starts others.",
        "pass",
        "loading/test_loaders.py::test_a_loader_with_workers_that_persist_is_usable_after_an_error",
    ),
    Mutation(
        "options.py",
        'if name != "_used_by"}',
        "}",
        "test_options.py::test_a_copy_of_a_trainer_that_runs_can_be_changed",
    ),
    Mutation(
        "networks/precision.py",
        "if self._before != _fingerprints(self._trained) or not any(map(_has_gradients, self._trained)):",
        "if False:",
        WINDOWS + "test_a_model_with_an_optimizer_of_its_own_makes_steps",
    ),
    Mutation(
        "training/training_log.py",
        "has_steps = any(self._session.world.gather(not self._session.metrics.is_empty))",
        "pass",
        WINDOWS + "test_what_a_dropped_last_window_has_logged_is_of_its_epoch",
    ),
    # Optimizers with weights for evaluations.
    Mutation(
        "model_internals/evaluation_weights.py", "                p.copy_(value)", "                pass", UNCHANGED_BY
    ),
    Mutation("checkpoints/reading.py", 'state.update(content.get("evaluation_weights", {}))', "pass", OF_OPTIMIZER),
    Mutation("calls/evaluate.py", "    expect_evaluation_weights(model)\n", "", OF_OPTIMIZER),
    Mutation(
        "training/evaluator.py",
        "with _inert(session) if self._in_training else",
        "with _inert(session) if True else",
        OF_OPTIMIZER,
    ),
    # What has no effect.
    Mutation(
        "model_internals/run_context.py",
        "self._logged.add(full_name)",
        "pass",
        MISTAKES + "test_a_name_with_the_phase_in_it_is_named_once",
    ),
    Mutation(
        "training/training_log.py",
        "if unused and self._optimizers and not",
        "if False and not",
        MISTAKES + "test_options_that_a_model_does_not_use_are_named_at_the_first_row",
    ),
    Mutation(
        "planning/training_plan.py",
        "and not isinstance(part, ReduceLROnPlateau | SWALR)",
        "",
        MISTAKES + "test_a_scheduler_that_is_never_stepped_is_named_once",
    ),
    Mutation(
        "training/loop.py",
        "self.planning.look(state, ends_epoch=True)",
        "pass",
        MISTAKES + "test_a_scheduler_that_is_never_stepped_is_named_once",
    ),
    Mutation(
        "options.py",
        "if self.deterministic and self.benchmark:",
        "if False:",
        MISTAKES + "test_options_that_contradict_each_other_are_an_error",
    ),
    Mutation(
        "options.py",
        '== "cpu" and [*indices] != [*range(len(indices))]:',
        '== "cpu" and False:',
        MISTAKES + "test_options_that_contradict_each_other_are_an_error",
    ),
    # Options and scores.
    Mutation(
        "options.py",
        "if self._used_by is not None:",
        "if False:",
        "test_options.py::test_an_option_that_is_set_while_the_trainer_runs_is_an_error_and_has_no_effect",
    ),
    Mutation(
        "calls/launching.py",
        "call.options.end_use()",
        "pass",
        "test_options.py::test_an_option_can_be_set_between_two_calls_and_is_checked_then",
    ),
    Mutation("planning/due.py", "if not math.isfinite(score):", "if False:", SCORES),
    Mutation("training/monitor.py", "self._has_warned = True", "pass", SCORES),
    # From a loss to a step.
    Mutation(
        "networks/precision.py",
        'if not hasattr(optimizer, "param_groups"):',
        "if False:",
        "training/test_likely_mistakes.py::test_optimizer_step_wants_an_optimizer",
    ),
    Mutation("networks/precision.py", "self._report_gradients(optimizer, parameters, norm)", "pass", NORMS),
    Mutation(
        "networks/precision.py",
        "self._report_gradients(optimizer, parameters, norm)",
        "self._report_gradients(optimizer, parameters, norm if limit is None else norm.clamp(max=limit))",
        NORMS,
    ),
    Mutation(
        "networks/precision.py",
        "            scaler.unscale_(part)\n",
        "            nn.utils.clip_grad_norm_(part.param_groups[0]['params'], self._clip_norm or 1e9)\n"
        "            scaler.unscale_(part)\n",
        PRECISION + "test_fp16_is_the_loop_by_hand_with_a_grad_scaler",
    ),
    Mutation(
        "networks/precision.py",
        "if self.scaler is not None:\n                self.scaler.update()",
        "if False:\n                pass",
        TWO_OPTIMIZERS,
    ),
    Mutation(
        "networks/precision.py",
        "        self.num_steps += self._growth\n        return True\n",
        "        self.num_steps += self._growth\n        self.scaler and self.scaler.update()\n        return True\n",
        TWO_OPTIMIZERS,
    ),
    Mutation(
        "networks/precision.py",
        "state = {} if self.scaler is None else self.scaler.state_dict()",
        "state = {}",
        PRECISION + "test_an_interrupted_run_with_two_optimizers_ends_with_the_same_bits",
    ),
    Mutation(
        "networks/precision.py", "elif not self._clip_and_step(", "elif False and self._clip_and_step(", NOT_FINITE
    ),
    Mutation("training/loop.py", "step -= 1", "pass", NOT_FINITE),
    Mutation(
        "training/loop.py",
        "should_log = should_log and is_last",
        "pass",
        PRECISION + "test_limits_and_log_points_count_the_steps_that_took_place",
    ),
    Mutation(
        "networks/precision.py",
        "if self._skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:",
        "if False:",
        PRECISION + "test_gradients_that_are_never_finite_end_the_run",
    ),
    Mutation(
        "networks/precision.py",
        " and not _has_gradients(optimizer):",
        " and False:",
        PRECISION + "test_a_step_without_a_gradient_changes_nothing_and_returns_false",
    ),
    Mutation(
        "networks/precision.py",
        "before != [p._version for p in parameters]",
        "False",
        PRECISION + "test_an_optimizer_that_needs_no_gradients_steps",
    ),
    Mutation(
        "networks/precision.py",
        "self.last_loss = loss",
        "pass",
        PRECISION + "test_a_loss_that_is_not_finite_ends_the_run_even_if_it_is_not_logged",
    ),
    Mutation(
        "networks/precision.py",
        "        if has_skipped:\n            self.last_loss = None\n",
        "",
        PRECISION + "test_the_loss_of_a_step_that_fp16_skips_is_not_judged",
    ),
    # What no checkpoint would hold.
    Mutation(
        "model_internals/checks.py",
        "if id(p) not in held and",
        "if False and",
        COMPLETENESS + "test_a_trained_tensor_that_no_checkpoint_holds_is_named_before_the_first_step",
    ),
    Mutation(
        "model_internals/checks.py",
        "names = {*module._buffers.keys()} - module._non_persistent_buffers_set",
        "names = module._buffers.keys()",
        COMPLETENESS + "test_a_trained_tensor_that_no_checkpoint_holds_is_named_before_the_first_step",
    ),
    Mutation(
        "model_internals/checks.py",
        "addresses.add(value.data_ptr())",
        "pass",
        COMPLETENESS + "test_what_is_held_twice_or_by_its_own_state_is_no_error",
    ),
    Mutation(
        "model_internals/checks.py",
        "pending.extend((path, item, True) for item in value)",
        "pass",
        COMPLETENESS + "test_a_part_where_checkpoints_do_not_look_is_named_before_the_first_step",
    ),
    Mutation(
        "model_internals/checks.py",
        "if known.setdefault(name, part) is not part:",
        "if False:",
        COMPLETENESS + "test_two_parts_of_one_name_are_an_error",
    ),
    Mutation(
        "training/loop.py",
        "self.session.check_checkpoint_holds_all()",
        "pass",
        COMPLETENESS + "test_a_group_that_a_hook_adds_is_checked_before_its_first_step",
    ),
    Mutation(
        "training/checkpointer.py",
        "session.check_checkpoint_holds_all()",
        "pass",
        COMPLETENESS + "test_a_group_that_a_step_adds_is_found_at_the_next_save",
    ),
    Mutation(
        "model_internals/attributes.py",
        " and not holds_only_atoms(value)",
        "",
        COMPLETENESS + "test_a_list_of_many_pairs_costs_less_than_a_step_of_python_for_each",
    ),
    # Callbacks.
    Mutation(
        "callbacks.py",
        '"""Put the weights back."""\n        self._put_back()\n\n    def on_testing_start',
        '"""Put the weights back."""\n\n    def on_testing_start',
        AVERAGE,
    ),
    Mutation("callbacks.py", "if state.step != self._step:", "if True:", AVERAGE),
    Mutation("calls/evaluate.py", "session.hooks.load_state_dict(", "print(", AVERAGE),
    Mutation(
        "callbacks.py",
        'self.averaged.module.load_state_dict(state_dict["evaluation_weights"][self.name])',
        "pass",
        CALLBACKS + "test_an_average_resumes_with_the_same_bits",
    ),
    Mutation("callbacks.py", "handle.remove()", "pass", CALLBACKS + "test_activations_are_measured_at_log_points_only"),
    Mutation(
        "callbacks.py",
        "if state.step >= self.last:",
        "if state.step > self.last:",
        CALLBACKS + "test_a_profile_has_the_steps_asked_for",
    ),
    # Logs and loggers.
    Mutation("metrics/rows.py", '(kind == "end" and keep_end)', 'kind == "end"', GOES_ON),
    Mutation("metrics/rows.py", ' or kind == "evaluation" or', " or", KEPT_ROWS),
    Mutation("metrics/rows.py", 'return "later"', "pass", KEPT_ROWS),
    Mutation(
        "metrics/rows.py",
        "file.truncate(_end_of_last_line(file))",
        "print(_end_of_last_line(file))",
        LOGGERS + "test_the_row_of_an_evaluation_is_no_part_of_an_unfinished_line",
    ),
    Mutation(
        "training/training_log.py",
        'begin_phase("train", metrics)',
        'begin_phase("train", self._session.metrics)',
        GOES_ON,
    ),
    Mutation("training/training_log.py", "keep_end=not goes_on", "keep_end=False", FINISHED),
    Mutation(
        "training/training_log.py",
        '"end": self.end_values',
        '"end": {}',
        ENDS + "test_a_kill_after_the_last_checkpoint_loses_no_row_and_no_result",
    ),
    Mutation(
        "calls/evaluate.py",
        "                stack.enter_context(session.checkpoints.locked())\n",
        "",
        TRAINING + "test_an_evaluation_beside_a_running_training_writes_no_row_and_says_so",
    ),
    Mutation("training/run_loggers.py", "self._status = _status(error)", "pass", ENDED),
    Mutation("training/run_loggers.py", "if self._trains and self._loggers:", "if self._loggers:", ENDED),
    Mutation(
        "calls/launching.py",
        "            report_failure(call.options.loggers, folder)",
        "            pass",
        LOGGERS + "test_mlflow_is_told_that_rank_0_was_killed",
    ),
    Mutation("loggers.py", "if self._writer is None and _is_main():", "if self._writer is None:", IMAGES),
    Mutation("loggers.py", "        if not later:\n            return\n", "        return\n", TENSORBOARD),
    Mutation(
        "loggers.py",
        "for name, value in values.items() if name not in known]",
        "for name, value in values.items()]",
        LOGGERS + "test_mlflow_runs_of_the_user_get_the_parameters_that_they_do_not_have",
    ),
    Mutation(
        "loggers.py",
        "finish(exit_code=self._exit_code)",
        "finish()",
        LOGGERS + "test_wandb_ends_with_the_exit_code_of_the_training",
    ),
    Mutation(
        "display/run_log.py",
        "logger.propagate = False",
        "pass",
        CONSOLE + "test_a_program_with_logging_of_its_own_gets_the_same_lines_once",
    ),
    Mutation(
        "display/run_log.py",
        "max(_LEVELS[self._log_level], self._level,",
        "max(logging.INFO, self._level,",
        CONSOLE + "test_the_log_level_decides_what_the_console_shows_and_train_log_has_all",
    ),
    Mutation(
        "display/run_log.py",
        "self.record_failure(error)",
        "pass",
        CONSOLE + "test_train_log_has_the_traceback_of_a_failure_which_our_console_does_not_show",
    ),
    Mutation(
        "calls/launching.py",
        "log.record_failure(error)",
        "pass",
        CONSOLE + "test_train_log_has_the_failure_of_another_rank",
    ),
    Mutation(
        "training/session.py",
        'self.world.is_main and options.log_level != "quiet"',
        "self.world.is_main",
        CONSOLE + "test_a_quiet_run_that_resumes_prints_nothing_at_all",
    ),
    Mutation(
        "tools/command.py",
        "            sys.stdout.flush()  # Here",
        "            pass  # Here",
        "tools/test_command.py::test_a_command_whose_output_nobody_reads_ends_without_a_traceback",
    ),
    Mutation(
        "tools/command.py",
        "if not _is_output_closed():",
        "if False:",
        "tools/test_command.py::test_a_broken_pipe_that_is_not_the_output_is_raised",
    ),
    Mutation(
        "tools/plot.py",
        "sorted(curve, key=lambda point: point[0])",
        "curve",
        "tools/test_command.py::test_plot_draws_evaluations_at_their_step",
    ),
    # Pages.
    Mutation(
        "docs/seeds.md",
        "| `TrainRunInfo.best_model_path` | `FitResult.best_checkpoint` |\n",
        "",
        "test_seeds.py::test_every_name_of_the_seeds_has_exactly_one_row_in_their_order",
    ),
    Mutation(
        "docs/seeds.md",
        "`FitResult.best_metrics`",
        "`FitResult.metrics_of_the_best`",
        "test_seeds.py::test_a_row_names_what_exists_here_or_gives_a_reason",
    ),
    Mutation(
        "docs/hooks.md",
        "`append_to_banner(",
        "`add_to_banner(",
        DOCS + "test_hooks_md_has_every_name_that_a_user_can_write_or_use",
    ),
    Mutation(
        "docs/from_a_loop.md",
        "        nn.utils.clip_grad_norm_(net.parameters(), 1.0)",
        "        nn.utils.clip_grad_norm_(net.parameters(), 0.9)",
        DOCS + "test_the_loop_by_hand_and_the_trainer_end_with_the_same_bits",
    ),
    Mutation(
        "docs/from_a_loop.md",
        "becomes `seed=0`",
        "becomes `seeds=0`",
        DOCS + "test_options_that_a_sentence_names_exist",
    ),
    Mutation(
        "docs/from_a_loop.md",
        "Trainer(max_epochs=5, seed=0,",
        "Trainer(max_epochs=5, seeds=0,",
        DOCS + "test_options_that_a_page_gives_to_a_trainer_or_a_split_exist",
    ),
    Mutation(
        "docs/hooks.md",
        "](precision.md)",
        "](precise.md)",
        DOCS + "test_links_lead_to_files_of_the_repository[docs/hooks.md]",
    ),
    Mutation(
        "docs/metrics.md",
        "it is `valid/<split>/loss`",
        "it is valid/<split>/loss",
        DOCS + "test_no_name_in_angle_brackets_is_hidden_as_a_tag_of_html[metrics]",
    ),
    Mutation(
        "docs/troubleshooting.md",
        "takes no positional",
        "takes no unnamed",
        SITE + "test_an_error_message_is_one_of_the_package",
    ),
    Mutation(
        "docs/order_of_hooks.md",
        "│  │  train_step(batch, state)\n",
        "",
        SITE + "test_the_diagram_of_hooks_is_the_order_of_real_runs",
    ),
    Mutation(
        "docs/order_of_hooks.md",
        "on_training_start\ntrain\n",
        "train\non_training_start\n",
        SITE + "test_the_diagram_of_hooks_is_the_order_of_real_runs",
    ),
    Mutation(
        "docs/reference/options.md",
        ".. autoattribute:: Trainer.seed\n",
        "",
        SITE + "test_the_options_are_grouped_as_in_the_source",
    ),
    Mutation(
        "docs/reference/schedules.md",
        ".. autofunction:: cosine\n",
        "",
        SITE + "test_every_public_name_is_on_a_page_of_the_reference",
    ),
    Mutation(
        "docs/reference/trainer.md",
        "automethod:: config",
        "automethod:: configs",
        SITE + "test_every_name_of_the_reference_exists_once",
    ),
    Mutation("docs/index.md", "\nglossary\n", "\n", SITE + "test_every_page_is_in_the_index_once"),
    Mutation(
        "docs/tutorial.md",
        "lr=0.02",
        "lr=0.2",
        DOCS + "test_the_tutorial_can_be_followed_from_its_first_line_to_its_last",
    ),
    Mutation("training/evaluator.py", "with rng.fork_rng(session.device), ", "with ", BETWEEN),
    Mutation("training/evaluator.py", "torch.no_grad(), ", "", TAKES_NO_MORE),
    Mutation("calls/predict.py", "evaluation_mode(session, step)", "evaluation_mode(session)", BETWEEN),
    Mutation("calls/predict.py", "step = i * world.size + world.rank", "step = i", AS_ONE),
    Mutation("calls/predict.py", "None if is_sharded else _MOST_WAITING", "None", WAITS),
    Mutation("calls/predict.py", ", session.context.refuse_log()", "", NO_PREDICTION),
    Mutation(
        "calls/predict.py", 'name = "test" if datamodule.predict is None else "predict"', 'name = "test"', BETWEEN
    ),
    Mutation("calls/launching.py", "        take_final_weights(call, final)", "        pass", AS_ONE),
    Mutation(
        "calls/predict.py",
        "        with contextlib.suppress(GeneratorExit):\n",
        "        with contextlib.nullcontext():\n",
        TAKES_NO_MORE,
    ),
    Mutation("calls/predict.py", "indices is None else indices, p", "True else indices, p", PREDICTED_FILE),
    Mutation("loading/split_loader.py", 'self._phase == "predict"', "False", AS_ONE),
    Mutation("loading/sample_order.py", "tail < world.size and not is_dealt", "tail < world.size", AS_ONE),
    Mutation("calls/prediction_output.py", "if form != self._form:", "if False:", NO_FILE),
    Mutation("calls/prediction_output.py", "rows.ndim == 0 or len(rows) != num_samples", "False", NO_FILE),
    Mutation("calls/prediction_output.py", "leaves.keys() != outputs.keys()", "False", NO_FILE),
    Mutation(
        "calls/prediction_output.py",
        ".resolve_neg().contiguous()",
        ".resolve_neg()",
        PREDICTION + "test_a_file_takes_tensors_of_any_dtype_and_layout",
    ),
    Mutation(
        "callbacks.py",
        '"""Put the average in place of the weights."""\n        self._put_in_place()\n\n    def on_predicting_end',
        '"""Put the average in place of the weights."""\n\n    def on_predicting_end',
        PREDICTION + "test_averaged_weights_predict_as_they_are_tested",
    ),
    Mutation("model_internals/inference.py", "if len(nets) != 1:", "if not nets:", NO_PREDICTION),
    Mutation(
        "tools/runs.py",
        "chosen_checkpoint(Path(name), model.save_name)",
        "require_file(Path(name))",
        "checkpoints/test_sharded.py::test_the_command_tests_a_folder_and_the_run_that_has_it",
    ),
    Mutation(
        "loading/batches.py",
        "int(Fraction(limit)",
        "int(limit * num_batches) or int(Fraction(limit)",
        LIMITS + "test_a_part_is_exact",
    ),
    Mutation("loading/batches.py", "return max(1, int(", "return max(0, int(", FIRST_BATCHES),
    Mutation("loading/split_loader.py", "        if limit is None:\n", "        if limit is not None:\n", LAST_WINDOW),
    Mutation(
        "loading/split_loader.py",
        "order[: limited(-(-len(order) // world.size), limit) * world.size]",
        "order",
        FIRST_BATCHES,
    ),
    Mutation("loading/split_loader.py", "split.shuffle and not in_order", "split.shuffle", OVERFITTING),
    Mutation(
        "loading/iterable_loader.py",
        "int(self._limit) - start",
        "int(self._limit)",
        LIMITS + "test_a_stream_takes_a_number_of_batches_and_no_part",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "max(0, limited(length, self._limit) - batches)\n        read",
        "max(0, length - batches)\n        read",
        FIRST_BATCHES,
    ),
    Mutation("loading/train_data.py", "0 if self._repeats else state.epoch", "state.epoch", OVERFITTING),
    Mutation("options.py", 'and phase != "test"', 'and phase == "train"', OVERFITTING),
    Mutation(
        "training/loop.py", "title = with_limits(title, self.options, *self.phases())", "pass", SAID_TO_BE_LIMITED
    ),
    Mutation("calls/evaluate.py", "with_limits(phase if", "str(phase if", SAID_TO_BE_LIMITED),
    Mutation("tools/audit/bits.py", "if a.batches != b.batches:", "if False:", NAMED_BATCH + "[same_noise]"),
    Mutation("tools/audit/bits.py", "changes_hash_seed=True", "changes_hash_seed=False", PLANTED_HASHES),
    Mutation("tools/audit/sums.py", "TOLERANCE = 1e-3", "TOLERANCE = 1.0", PLANTED + "[wrong_axis]"),
    Mutation("tools/audit/sums.py", "TOLERANCE = 1e-3", "TOLERANCE = 1e-9", RIGHT),
    Mutation("tools/audit/sums.py", "if repr(a.rates) != repr(b.rates):", "if False:", PLANTED + "[scheduled_twice]"),
    Mutation("tools/audit/sums.py", "if facts.carries_state:", "if False:", RIGHT + "[carried]"),
    Mutation("tools/audit/sums.py", "STANDARD_ERRORS = 5.0", "STANDARD_ERRORS = 0.0", RIGHT + "[gan]"),
    Mutation("tools/audit/watches.py", "self._drops_in_validation = True", "pass", NAMED_BATCH + "[wrong_modes]"),
    Mutation("tools/audit/watches.py", "if not self._validated or not changed or", "if not", PLANTED + "[careless]"),
    Mutation("tools/audit/watches.py", "if identity != id(value)", "if False", NAMED_BATCH + "[half_optimized]"),
    Mutation("tools/audit/sums.py", "        stirs_weights=True,\n", "", NAMED_BATCH + "[wrong_metrics]"),
    Mutation("tools/audit/sums.py", '"mean", "sum", "last"', '"mean", "sum"', NAMED_BATCH + "[wrong_metrics]"),
    Mutation(
        "tools/audit/recorder.py",
        "self._stir(4.0 ** (len(self._steps) - 1))",
        "self._stir(1.0)",
        NAMED_BATCH + "[wrong_metrics]",
    ),
    Mutation(
        "tools/audit/sums.py", "STANDARD_ERRORS * math.hypot(weight_error, other_error)", "0.0", RIGHT + "[masked]"
    ),
    Mutation("tools/audit/sums.py", "if coupled := _coupled(trials, facts):", "if False:", NO_MEAN),
    Mutation("tools/audit/looks.py", "if facts.mode == mode and words", "if words", RIGHT + "[unusual]"),
    Mutation(
        "tools/audit/looks.py",
        "if facts.mode == mode and words[-1] in better and",
        "if False and",
        PLANTED + "[careless]",
    ),
    Mutation("tools/audit/looks.py", "train.is_sorted and facts.is_in_order", "False", PLANTED + "[wrong_data]"),
    Mutation("tools/audit/looks.py", "if train.is_augmented and", "if False and", PLANTED + "[same_noise]"),
    Mutation("tools/audit/looks.py", "if record.strayed:", "if False:", NAMED_BATCH + "[attached]"),
    Mutation(
        "tools/audit/program_data.py", '("train", "valid", "test")', '("train", "valid")', PLANTED + "[wrong_data]"
    ),
    Mutation(
        "tools/audit/program_data.py",
        "position % (1 + len(chosen) // _MOST_KEPT) == 0",
        "len(kept) < _MOST_KEPT",
        IN_COMMON,
    ),
    Mutation("tools/audit/patterns.py", "(ratio > math.log(_OTHER_SCALE))", "(ratio >= 0)", IN_COMMON),
    Mutation("tools/audit/patterns.py", "(is_other & is_alike).sum()", "is_other.sum()", IN_COMMON),
    Mutation("tools/audit/calls.py", "self._used.add(id(each))", "pass", BUFFER),
    Mutation("tools/audit/calls.py", "if kept is not None and kept() is each:", "if isinstance(each, Tensor):", BUFFER),
    Mutation("tools/audit/couplings.py", "coupled = coupled or above", "pass", COUPLED),
    Mutation("tools/audit/couplings.py", "            above = coupled = name.lower()", "            pass", COUPLED),
    Mutation("tools/audit/couplings.py", "name not in _LINEAR and not", "name not in _LINEAR or not", COUPLED),
    Mutation("tools/audit/couplings.py", "if order == (*range(len(order)),):", "if False:", COUPLED),
    Mutation("tools/audit/couplings.py", "if self._orders[back] == 0 or", "if True or", COUPLED),
    Mutation("tools/audit/couplings.py", "first.shape[arguments[1]] == size", "arguments[1] == 0", COUPLED),
    Mutation("tools/audit/couplings.py", "            self.has_statistics = True", "            pass", COUPLED),
    Mutation(
        "tools/audit/watches.py",
        "elif use.in_validation and use.has",
        "elif False and use.has",
        NAMED_BATCH + "[wrong_modes]",
    ),
    Mutation("tools/audit/couplings.py", "in (0, -first.ndim))", "== 0)", COUPLED),
    Mutation("tools/audit/couplings.py", "arguments[position] if len(arguments) > position else ", "", COUPLED),
    Mutation("tools/audit/couplings.py", 'node.name().endswith("AccumulateGrad")', "False", COUPLED),
    Mutation("tools/audit/couplings.py", "each % size == 0 for each in shape", "False for each in shape", COUPLED),
    Mutation("tools/audit/watches.py", "elif is_constant and around", "elif False", PLANTED + "[careless]"),
    Mutation(
        "tools/audit/calls.py",
        'yield "cross_entropy wants scores, but gets probabilities", _are',
        'yield "", not _are',
        PLANTED + "[careless]",
    ),
    Mutation("tools/audit/calls.py", "if state in ends and not self.found:", "if False:", PLANTED + "[careless]"),
    Mutation("tools/audit/calls.py", "        torch.rand(number)\n", "", RIGHT + "[classifier]"),
    Mutation(
        "tools/audit/calls.py", "if min(each[1] for each in grown) >= steps:", "if False:", NAMED_BATCH + "[careless]"
    ),
    Mutation(
        "tools/audit/calls.py",
        "if sorted(shapes) != [(self._size,), (self._size, 1)]:",
        "if True:",
        NAMED_BATCH + "[forecast]",
    ),
    Mutation("tools/audit/calls.py", "self._new_hidden.add(digest(part))", "pass", PLANTED + "[forecast]"),
    Mutation("tools/audit/calls.py", "self._pending[name] = others[-1]", "pass", PLANTED + "[attached]"),
    Mutation("tools/audit/calls.py", "self.pairs = name", "pass", RIGHT + "[contrastive]"),
    Mutation("tools/audit/patterns.py", "if all(places):", "if False:", PLANTED + "[forecast]"),
    Mutation("tools/audit/patterns.py", "2 * sum(run in counts", "0 * sum(run in counts", PLANTED + "[forecast]"),
    Mutation("tools/audit/looks.py", "if 2 * changed > number:", "if False:", PLANTED + "[peeking]"),
    Mutation("tools/audit/looks.py", "text and not record.facts.assigns_splits", "text", RIGHT + "[unusual]"),
    Mutation("tools/audit/looks.py", "if not read.is_handled:", "if True:", RIGHT + "[unusual]"),
    Mutation("tools/audit/sums.py", "if facts.moves_weights and", "if False and", NO_MEAN),
    Mutation("tools/audit/sums.py", "if facts.mixes_samples:", "if False:", NO_MEAN),
    Mutation("tools/audit/calls.py", "if function is None:  # In a validation", "if False:  # In a validation", LOSSES),
    Mutation("tools/audit/patterns.py", "if has_levels else", "if False else", IN_COMMON),
    Mutation("tools/audit/patterns.py", "    return bits ^ (bits >> 31)", "    return bits * 2**48", IN_COMMON),
    Mutation("tools/audit/bits.py", "if alone != together:", "if False:", PLANTED + "[copies]"),
    Mutation(
        "tools/audit/recorder.py",
        "if self.datamodule.train is not self._changed_train:",
        "if False:",
        RIGHT + "[unusual]",
    ),
    Mutation("tools/audit/recorder.py", "vars(module).update(train=_stay(module))", "pass", RIGHT + "[unusual]"),
    Mutation("tools/audit/sums.py", "EPOCH_STEPS * total if facts.drop_last else", "", RIGHT + "[unusual]"),
    Mutation(
        "tools/audit/__init__.py",
        "    except Exception as error:  # An",
        "    except KeyError as error:  # An",
        LEAVES_OTHERS,
    ),
    Mutation("tools/audit/__init__.py", "or (same and same[0] in accepted)", "", BY_INTENTION),
    Mutation("tools/runs.py", 'if results == {"not applicable"}:', "if False:", NOTHING_CHECKED),
    Mutation("tools/audit/program_data.py", "read.changed.append(index)", "pass", PLANTED + "[in_place]"),
    Mutation(
        "tools/audit/processes.py", "    multiprocessing.set_start_method(start_method, force=True)\n", "", METHOD
    ),
    Mutation("tools/audit/processes.py", "if is_late:", "if False:", NOT_JUDGED),
    Mutation("tools/audit/processes.py", "        child.kill()", "        pass", NOT_JUDGED),
    Mutation("tools/audit/processes.py", "is_late=True", "is_late=False", TOO_SLOW),
    Mutation("tools/audit/processes.py", "if key not in self._kept:", "if True:", SHARED_TRIALS),
    Mutation("tools/audit/sums.py", "ends_when=has_halved", "ends_when=None", LEARNED),
    Mutation("tools/audit/sums.py", "- 0.5 * abs(losses[0])", "", NO_DOUBT),
    Mutation("tools/audit/sums.py", "0.3 * abs(first) and len", "0.0 * abs(first) and len", NO_DOUBT),
    Mutation("nested.py", "value._fields, value", "range(len(value)), value", NESTED),
    Mutation("nested.py", "isinstance(value, entered) and value", "isinstance(value, entered)", NESTED),
    Mutation("nested.py", "str(key), entered)", "str(key))", NESTED),
    Mutation("nested.py", "type(value)(*parts) if", "tuple(parts) if", NESTED),
    Mutation("data.py", 'require_kind(name, getattr(self, name), bool, "True or False")', "pass", WRONG_KINDS),
    Mutation(
        "networks/precision.py", 'require_kind("loss", loss, Tensor, "a tensor of one element")', "pass", WRONG_KINDS
    ),
    Mutation(
        "trainer.py",
        '        require_path("path", path)\n        require_path("check',
        '        require_path("check',
        WRONG_KINDS,
    ),
    Mutation("model_internals/run_context.py", "if self._is_callers_turn else", "if False else", NO_HANGS),
    Mutation("data.py", "rows_of(array, indices)", "array[: len(indices)]", ARRAYS),
    Mutation("calls/replay.py", "counters[0] < step", "counters[0] <= step", REPLAYED),
    Mutation("calls/replay.py", "        root=None,\n", "", REPLAYED),
    Mutation("calls/replay.py", "inspector.unwrap()", "pass", REPLAYED_AGAIN),
    Mutation("calls/step_inspector.py", "        self._write_back(after)\n", "", REPLAYED),
    Mutation(
        "loading/split_loader.py",
        "self._order.tensors(batches - self._num_finished)",
        "self._order.tensors(batches + 1)",
        REPLAYED,
    ),
    Mutation("loading/train_data.py", "self._passes.num_begun() - 1", "self._passes.num_begun()", REPLAYED_STREAM),
    Mutation(
        "model_internals/step_tap.py",
        "        if self._probed is not None:\n            return False\n        has",
        "        has",
        PROBED,
    ),
    Mutation("model_internals/step_tap.py", "if self._probe_runs_backward:", "if False:", PROBED),
    Mutation("model_internals/step_tap.py", 'args[1] if len(args) > 1 else "mean"', '"mean"', TAPPED),
    Mutation("model_internals/step_tap.py", "vars(self._model)[name] = self._of_model[name]", "pass", UNTAPPED),
    Mutation("model_internals/step_tap.py", "            handle.remove()", "            pass", UNTAPPED),
    Mutation("calls/step_inspector.py", "self._num_done + 1", "self._num_done", POISONED),
    Mutation("calls/step_inspector.py", "precision.add_gradient_report(self._note_gradients)", "pass", REPLAYED_NORMS),
    Mutation("calls/step_inspector.py", "elif tensor.requires_grad:", "elif False:", NOT_FINITE_MODULE),
    Mutation("training/training_log.py", 'f"{name} is not finite at step {step}" + hint', 'f"{name}" + hint', POISONED),
    # Metric objects.
    Mutation(
        "metrics/accumulator.py",
        "if is_metric_object(value):",
        "if False:",
        OBJECTS + "test_each_split_has_its_own_value_of_an_object_that_they_share",
    ),
    Mutation(
        "metrics/accumulator.py",
        'if reduce != "mean":',
        "if False:",
        OBJECTS + "test_what_cannot_be_logged_is_an_error_that_names_it",
    ),
    Mutation(
        "metrics/accumulator.py",
        "if name in self._running or self.objects.get(name, metric) is not metric:",
        "if False:",
        OBJECTS + "test_what_cannot_be_logged_is_an_error_that_names_it",
    ),
    Mutation(
        "metrics/accumulator.py",
        "            if name in self.objects:",
        "            if False:",
        OBJECTS + "test_what_cannot_be_logged_is_an_error_that_names_it",
    ),
    Mutation(
        "metrics/accumulator.py",
        "        for metric in originals.values():\n            metric.reset()\n",
        "",
        OBJECTS + "test_each_split_has_its_own_value_of_an_object_that_they_share",
    ),
    Mutation(
        "metrics/accumulator.py",
        "        for metric in objects.values():\n            metric.reset()\n",
        "",
        OBJECTS + "test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation",
    ),
    Mutation(
        "metrics/accumulator.py",
        "objects = _merged_objects([(rank[1], rank[2]) for rank in gathered])",
        "pass",
        DISTRIBUTED_OBJECTS,
    ),
    Mutation(
        "metrics/accumulator.py",
        "merged=self._with_row(name, earlier, row)",
        "merged=row",
        OBJECTS + "test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation",
    ),
    Mutation(
        "metrics/accumulator.py",
        'metric_objects.restore(merged, saved["state"])',
        "pass",
        OBJECTS + "test_a_run_that_is_cut_inside_a_row_has_the_same_rows",
    ),
    Mutation(
        "metrics/accumulator.py",
        "            self._not_merged.add(name)",
        "            pass",
        OBJECTS + "test_an_object_that_cannot_be_merged_has_no_value_over_the_epoch",
    ),
    Mutation("metrics/metric_objects.py", "module.distributed_available_fn = _never", "pass", DISTRIBUTED_OBJECTS),
    Mutation(
        "metrics/metric_objects.py",
        "module._computed = None",
        "pass",
        OBJECTS + "test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation",
    ),
    Mutation(
        "metrics/metric_objects.py",
        'each._update_count = saved["updates"]',
        "pass",
        OBJECTS + "test_a_copy_of_what_was_seen_is_not_changed_by_the_next_update",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "return [_detached(item) for item in value]",
        "return value",
        OBJECTS + "test_a_copy_of_what_was_seen_is_not_changed_by_the_next_update",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "    if not isinstance(part, nn.Module) or is_of_torchmetrics(part):",
        "    if not isinstance(part, nn.Module):",
        OBJECTS + "test_metric_objects_are_no_networks",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "return not children or any(map(is_network, children))",
        "return True",
        OBJECTS + "test_metric_objects_are_no_networks",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "return not isinstance(value, nn.Module) or is_of_torchmetrics(value) or _is_frozen(value)",
        "return True",
        OBJECTS + "test_metric_objects_are_no_networks",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "if isinstance(value, Tensor) and value.numel() != 1:",
        "if False:",
        OBJECTS + "test_what_cannot_be_logged_is_an_error_that_names_it",
    ),
    Mutation(
        "metrics/metric_objects.py",
        '            yield from metric_objects_in(f"{name}.{child_name}", child)',
        "            pass",
        OBJECTS + "test_what_nobody_logs_is_kept_in_checkpoints_too",
    ),
    Mutation(
        "metrics/accumulator.py",
        "if name not in self.objects and self._is_held is not None and not self._is_held(metric):",
        "if False:",
        OBJECTS + "test_what_cannot_be_logged_is_an_error_that_names_it",
    ),
    Mutation(
        "training/checkpointer.py",
        "                restore(metric, states[0])",
        "                pass",
        OBJECTS + "test_what_nobody_logs_is_kept_in_checkpoints_too",
    ),
    Mutation(
        "training/checkpointer.py",
        "                self._session.metrics.update(full_name, objects[name], 1)",
        "                pass",
        OBJECTS + "test_a_run_that_is_cut_inside_a_row_has_the_same_rows",
    ),
    Mutation(
        "training/evaluator.py",
        "                metrics.detach_objects()",
        "                pass",
        OBJECTS + "test_each_split_has_its_own_value_of_an_object_that_they_share",
    ),
    Mutation(
        "training/evaluator.py",
        "                restore(metric, state)",
        "                pass",
        OBJECTS + "test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation",
    ),
    Mutation(
        "training/evaluator.py",
        "        metric.reset()\n    modes = [(module",
        "        pass\n    modes = [(module",
        OBJECTS + "test_an_object_is_computed_over_the_row_the_epoch_and_the_evaluation",
    ),
    Mutation(
        "training/evaluator.py",
        "        logged = [metric for metric, _ in before]  # It may be done again.\n",
        "",
        ENDS + "test_metric_objects_forget_what_a_validation_had_seen_that_an_error_ended",
    ),
    # The end of a run.
    Mutation(
        "training/loop.py",
        "is_due = bool(self.valid_names) and state.validated_step != state.step > 0",
        "is_due = False",
        ENDS + "test_final_weights_are_validated_where_no_validation_was_due",
    ),
    Mutation(
        "training/loop.py",
        "is_due = bool(self.valid_names) and state.validated_step != state.step > 0",
        "is_due = bool(self.valid_names)",
        ENDS + "test_nothing_is_validated_twice_or_against_the_options",
    ),
    Mutation(
        "training/loop.py",
        "            self.checkpointer.record_final_score()\n",
        "",
        ENDS + "test_final_weights_are_validated_where_no_validation_was_due",
    ),
    Mutation(
        "training/loop.py",
        "        self.checkpointer.forget_final_score()\n",
        "",
        ENDS + "test_the_best_checkpoint_is_kept_when_the_final_weights_are_better_and_the_run_goes_on",
    ),
    Mutation(
        "training/loop.py",
        "        values = self.log.read_end()\n",
        "        values = None\n",
        ENDS + "test_a_start_that_finds_the_run_finished_has_the_same_result_and_validates_nothing",
    ),
    Mutation(
        "training/loop.py",
        'title = f"{self.session.name} at step {self.state.step}"\n                self.end()',
        'title = f"{self.session.name} at step {self.state.step}"',
        ENDS + "test_a_kill_after_the_last_checkpoint_loses_no_row_and_no_result",
    ),
    Mutation(
        "checkpoints/folder.py",
        'is_final = last is not None and last["step"] == state.get("step")',
        "is_final = False",
        ENDS + "test_resuming_from_the_best_takes_final_weights_that_are_the_best",
    ),
    Mutation(
        "training/resuming.py",
        "return session.world.broadcast(was_final) or",
        "return",
        ENDS + "test_resuming_from_the_best_takes_final_weights_that_are_the_best",
    ),
    Mutation(
        "training/training_log.py",
        "            self._session.context.record(end)\n",
        "",
        ENDS + "test_a_start_that_finds_the_run_finished_has_the_same_result_and_validates_nothing",
    ),
    # An error between two steps.
    Mutation(
        "training/loop.py",
        "            if is_between and self.session.world.size == 1 and self.state.batch > self.start_batch:",
        "            if False:",
        ENDS + "test_a_sample_that_cannot_be_read_loses_no_step",
    ),
    Mutation(
        "training/loop.py",
        "            if is_between and self.session.world.size == 1 and self.state.batch > self.start_batch:",
        "            if True:",
        ENDS + "test_what_an_error_inside_of_a_step_leaves_behind_is_not_saved",
    ),
    Mutation(
        "training/loop.py",
        "self.log.loading_failed and self.train_data.is_at_boundary(self.state)",
        "self.log.loading_failed",
        ENDS + "test_the_first_part_of_an_accumulation_window_is_not_saved",
    ),
    Mutation(
        "training/loop.py",
        "        self.session.hooks.report_exception(error)  # Averaged weights are put back.\n",
        "",
        ENDS + "test_an_error_in_a_validation_loses_no_step_and_the_validation_is_done_again",
    ),
    Mutation(
        "training/hook_dispatch.py",
        "        self._reported = error\n",
        "",
        ENDS + "test_callbacks_are_told_of_an_error_once",
    ),
    Mutation(
        "training/loop.py",
        "        self.checkpointer.restore_rng()\n        self.validate(ends_epoch=False)",
        "        self.validate(ends_epoch=False)",
        ENDS + "test_an_error_in_a_validation_loses_no_step_and_the_validation_is_done_again",
    ),
    Mutation(
        "training/loop.py",
        "            self.monitor.begin(ends_epoch=ends_epoch)\n",
        "",
        ENDS + "test_an_error_in_a_validation_loses_no_step_and_the_validation_is_done_again",
    ),
    Mutation(
        "training/loop.py",
        "reason = None if self.monitor.has_begun else self.stop.limit_reached()",
        "reason = self.stop.limit_reached()",
        ENDS + "test_a_validation_that_an_error_ended_at_the_last_step_is_no_validation_of_the_end",
    ),
    Mutation(
        "training/checkpointer.py",
        "is_whole = not self._monitor.has_begun",
        "is_whole = True",
        ENDS + "test_a_validation_that_is_done_again_keeps_its_best_checkpoint",
    ),
    Mutation(
        "training/loop.py",
        "        except Exception as other:\n",
        "        except ZeroDivisionError as other:\n",
        ENDS + "test_an_error_while_saving_after_an_error_hides_nothing",
    ),
    # Others.
    Mutation(
        "training/hook_dispatch.py",
        "        if name in ROW_COLUMNS:",
        "        if False:",
        "training/test_process_metrics.py::test_a_name_that_every_row_has_is_an_error",
    ),
    Mutation(
        "training/training_log.py",
        "return values | {name: value for name, value in measured.items() if name not in values}",
        "return values | measured",
        "training/test_process_metrics.py::test_what_the_model_logs_under_the_name_of_something_measured_stays",
    ),
    Mutation(
        "training/training_log.py",
        'values.setdefault("train/epoch_seconds", seconds)',
        'values["train/epoch_seconds"] = seconds',
        "training/test_process_metrics.py::test_what_the_model_logs_under_the_name_of_something_measured_stays",
    ),
    Mutation(
        "networks/precision.py",
        "_Noted(weakref.ref(optimizer), window)",
        "_Noted(lambda: optimizer, window)",
        PRECISION + "test_optimizers_that_are_made_in_a_step_end_with_it",
    ),
    Mutation(
        "training/loop.py",
        "                        next_check = step  # It counts on a step per window.\n",
        "",
        PRECISION + "test_parts_of_an_epoch_are_counted_in_batches_also_where_steps_are_left_out",
    ),
    Mutation(
        "training/loop.py",
        "self.train_data.batches_per_position))",
        "1))",
        PRECISION + "test_parts_of_an_epoch_are_counted_in_batches_also_where_steps_are_left_out",
    ),
    Mutation(
        "metrics/score_tables.py",
        "value.to(sum_dtype(value.device))",
        "value.to(torch.float32)",
        "networks/test_distributed.py::test_running_losses_keep_the_digits_of_a_long_sum",
    ),
    Mutation(
        "metrics/score_tables.py",
        "                if missing := sorted(known - losses.keys() - names):",
        "                if missing := []:",
        "networks/test_distributed.py::test_losses_in_the_table_of_one_rank_only_are_an_error_on_all",
    ),
    Mutation(
        "loading/seeding.py",
        "return rng.derive_seed(seed, int(index.index), 2, index.number)",
        "return rng.derive_seed(seed, int(index.index))",
        "loading/test_loaders.py::test_copies_of_a_sample_in_an_epoch_have_random_numbers_of_their_own",
    ),
    Mutation(
        "loading/seeding.py",
        "self.dataset.__getitems__(plain(indices))",
        "self.dataset.__getitems__(indices)",
        "loading/test_loaders.py::test_a_dataset_that_reads_lists_gets_the_plain_indices_of_copies",
    ),
    Mutation(
        "loading/train_data.py",
        "            loader.load_state_dict(mine)\n",
        "",
        RESUME + "test_a_loader_is_restored_once_and_it_is_the_one_that_was_saved",
    ),
    Mutation(
        "loading/iterable_loader.py",
        'if kind in ("valid", "test") and limit is None and _length(iterable) is None:',
        "if False:",
        "loading/test_loaders.py::test_an_evaluation_of_unknown_length_says_how_to_limit_it",
    ),
    Mutation(
        "calls/evaluate.py",
        'if choice == "best" and not is_best(session, path, content["state"]) and state.best_step is not None:',
        "if False:",
        MISTAKES + "test_a_best_checkpoint_that_was_not_kept_is_named",
    ),
    Mutation(
        "training/loop.py",
        "if has_weights and self.checkpointer.resumed_from is None and self.options.init_from is None:",
        "if False:",
        MISTAKES + "test_a_second_training_of_a_model_says_that_its_weights_are_replaced",
    ),
    Mutation(
        "object_tables.py",
        "return {name: _evaluated(target, each) for name, each in inspect.signature(target).parameters.items()}",
        "return inspect.signature(target).parameters",
        "test_config.py::test_annotations_that_cannot_be_resolved_are_not_judged_and_the_others_are",
    ),
    Mutation(
        "metrics/rows.py",
        "        if rows is not None:\n            self._open(rows",
        "        if True:\n            self._open(rows or 0",
        "test_loggers.py::test_a_file_that_a_user_names_is_opened_when_there_is_something_to_write",
    ),
    Mutation(
        "training/training_log.py",
        "            if not is_own:\n",
        "            if False:\n",
        "test_loggers.py::test_a_run_that_goes_on_from_another_folder_has_rows_of_its_own",
    ),
    Mutation(
        "metrics/accumulator.py",
        'if one.reduce == "last":\n            last = _last',
        "if False:\n            last = _last",
        "networks/test_distributed.py::test_the_last_value_of_several_ranks_is_that_of_one",
    ),
    Mutation(
        "calls/predict.py",
        "map(torch.clone, loader.indices())",
        "loader.indices()",
        "calls/test_predict.py::test_the_indices_of_a_batch_are_no_part_of_those_of_the_epoch",
    ),
    Mutation(
        "processes/slurm.py",
        "* _STEPS_PER_JOB",
        "",
        "processes/test_clusters.py::test_steps_of_jobs_that_run_at_the_same_time_have_ports_of_their_own",
    ),
    Mutation(
        "processes/hang_watch.py",
        "return 30 * 60.0 if is_launched() else None",
        "return None",
        "processes/test_hangs.py::test_auto_watches_several_processes_only",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "return len(part.state_dict()) > 0",
        "return False",
        OBJECTS + "test_a_module_with_a_state_is_loaded_as_a_network_whatever_its_methods",
    ),
    Mutation(
        "metrics/metric_objects.py",
        ", {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})",
        ")",
        OBJECTS + "test_what_a_step_has_computed_with_a_graph_can_be_seen_by_an_object",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "if is_of_torchmetrics(each) and vars(each).keys() & each.metric_state.keys()",
        "if is_of_torchmetrics(each)",
        OBJECTS + "test_modules_and_wrappers_with_metrics_inside_are_seen_through",
    ),
    Mutation(
        "metrics/metric_objects.py",
        "            each.reset()\n",
        "",
        OBJECTS + "test_a_copy_of_what_was_seen_is_not_changed_by_the_next_update",
    ),
    Mutation(
        "metrics/accumulator.py",
        "                    self._not_computed.add(name)\n",
        "",
        OBJECTS + "test_what_too_few_samples_do_not_give_is_missing_or_null_and_ends_nothing",
    ),
    Mutation(
        "training/checkpointer.py",
        "self._log.compute(with_objects=False)",
        "self._log.compute()",
        OBJECTS + "test_an_object_is_computed_for_rows_and_not_for_checkpoints",
    ),
    Mutation(
        "training/evaluator.py",
        "                metrics.reset()  # Those of the next evaluation begin anew.",
        "                pass",
        OBJECTS + "test_what_an_error_leaves_in_an_object_is_not_counted_later",
    ),
    Mutation(
        "training/session.py",
        "        self.metrics.reset()\n",
        "",
        OBJECTS + "test_what_an_error_leaves_in_an_object_is_not_counted_later",
    ),
    Mutation(
        "training/loop.py",
        "self.checkpointer.save(deletes=False)",
        "self.checkpointer.save()",
        ENDS + "test_nothing_is_deleted_for_what_is_saved_after_an_error",
    ),
    Mutation(
        "training/loop.py",
        "if not all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, Tensor)):",
        "if False:",
        ENDS + "test_weights_that_are_not_finite_are_not_saved_after_an_error",
    ),
    Mutation(
        "training/loop.py",
        " and self.state.batch > self.start_batch:",
        ":",
        ENDS + "test_a_start_that_has_trained_nothing_saves_nothing",
    ),
    Mutation(
        "loading/train_data.py",
        "        if self._loader is not None and self._loader.takes_state():\n            return False\n",
        "",
        ENDS + "test_a_loader_with_a_state_is_not_saved_beyond_what_it_has_given",
    ),
    Mutation(
        "training/loop.py",
        "if values is not None and (has_validated or not is_due):",
        "if values is not None:",
        ENDS + "test_a_finished_run_is_validated_when_it_is_asked_for_later",
    ),
    Mutation(
        "training/loop.py",
        "            self.monitor.end()\n",
        "            pass\n",
        ENDS + "test_a_validation_that_fails_can_be_turned_off",
    ),
    Mutation(
        "training/loop.py",
        "self.compare(values, decided=self.checkpointer.decided())",
        "self.compare(values)",
        ENDS + "test_what_a_model_has_decided_of_the_final_weights_is_not_asked_again",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "is_alike = type(data) is kind and data[0].shape[0] == size",
        "is_alike = type(data) is kind",
        "loading/test_loaders.py::test_batches_of_a_list_are_counted_one_by_one",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "                    except (AttributeError, IndexError):",
        "                    except ZeroDivisionError:",
        "loading/test_loaders.py::test_batches_of_a_list_are_counted_one_by_one",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "if is_flat and batch and count is count_samples else None",
        "if is_flat and batch else None",
        "loading/test_loaders.py::test_a_count_of_the_models_own_is_asked_for_every_batch",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "            self._is_exhausted = True\n            self._require_all",
        "            self._require_all",
        ENDS + "test_an_epoch_of_a_loader_with_a_state_is_not_begun_again_after_its_validation_failed",
    ),
    Mutation(
        "training/loop.py",
        "stop.reason is None or stop.limit_reached() is not None",
        "stop.reason is None",
        ENDS + "test_a_signal_at_the_last_step_leaves_nothing_of_the_last_epoch_out",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "self._number < expected:",
        "False:",
        SITUATIONS + "test_replicas_train_what_one_process_trains[SkippedByRank-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "max(expected, self._num_touched)",
        "expected",
        SITUATIONS + "test_replicas_train_what_one_process_trains[MorePasses-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if others:\n            self._end_pass()",
        "pass",
        SITUATIONS + "test_replicas_train_what_one_process_trains[ByHand-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "1 if bucket is None or bucket.work is None else 1 + self._again",
        "1",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Large-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "+ self._sparse if p.grad.is_sparse else report",
        "",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Sparse-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "self._report[index] = 0  # Cleared since it was noted.",
        "pass",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Cleared-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if gradient is None or gradient.is_sparse:",
        "if not self._report[index] or gradient.is_sparse:",
        SITUATIONS + "test_replicas_train_what_one_process_trains[MorePasses-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "trained = self._trained | self._newly_trained",
        "trained = self._trained",
        SITUATIONS + "test_replicas_train_what_one_process_trains[UnfrozenInStep-3]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        'self._num_passes = dict(state["passes"])',
        "pass",
        SITUATIONS + "test_replicas_train_what_one_process_trains[MorePasses-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "self._has_weights if known.has_weights is None else known.has_weights",
        "False",
        SITUATIONS + "test_replicas_train_what_one_process_trains[TokensSkipped-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if losses % self._again and losses // self._again:",
        "if False:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[WeightOfOne-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if not torch.equal(total, expected):\n            place",
        "if False:\n            place",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[SecondPass-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "self._finished = (31 * self._finished + which + 1) % _MODULUS",
        "pass",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[NoStep-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if gradient is None and self._report[index]:",
        "if False:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[StepInHook-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if id(p) not in self._index_of:",
        "if False:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[NewParameter-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "is_trainable = p.requires_grad",
        "is_trainable = True",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Frozen-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "self._is_on = False",
        "pass",
        "networks/test_distributed.py::test_ranks_may_run_other_backward_passes_in_a_validation",
    ),
    Mutation(
        "networks/parallel.py",
        "if mine != other:",
        "if False:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[OtherNetwork-2]",
    ),
    Mutation(
        "networks/parallel.py",
        "if nn.parameter.is_lazy(tensor):",
        "if False:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[WithoutShape-2]",
    ),
    Mutation(
        "networks/parallel.py",
        "_broadcast(self._reducer.refresh(), is_main=self.world.is_main)",
        "pass",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Added-2]",
    ),
    Mutation(
        "networks/parallel.py",
        "if begins_window:\n            self.share_buffers()",
        "if False:\n            self.share_buffers()",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Codebook-2]",
    ),
    Mutation(
        "networks/parallel.py",
        "if not dtensors.is_dtensor(p) and self._owner(p) is None:\n                    raise",
        "if False:\n                    raise",
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[Added-2-sharded]",
    ),
    Mutation(
        "networks/parallel.py",
        "if dtensors.is_dtensor(p) or (owner is not None and (is_sharded or id(p) not in present)):",
        "if False:",
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[SharedByTwo-2-sharded]",
    ),
    Mutation(
        "networks/precision.py",
        "total = 0.0  # Another",
        "pass  # Another",
        SITUATIONS + "test_replicas_train_what_one_process_trains[TokensSkipped-2]",
    ),
    Mutation(
        "networks/precision.py",
        "torch.view_as_real(tensor) if tensor.is_complex() else tensor",
        "tensor",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Types-2]",
    ),
    Mutation(
        "networks/fsdp.py",
        'if owner is net and not function.startswith("_")',
        'if False and not function.startswith("_")',
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[Methods-2-sharded]",
    ),
    Mutation(
        "networks/fsdp.py",
        'if "got mixed torch.Tensor and DTensor" in text:',
        "if False:",
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[EmaTeacher-2-sharded]",
    ),
    Mutation(
        "networks/fsdp.py",
        "and module.sparse and",
        "and False and",
        SITUATIONS + "test_shards_train_what_one_process_trains_or_say_why_not[Sparse-2-sharded]",
    ),
    Mutation(
        "training/loop.py",
        "            if meets:\n                parallel.end_window()\n            state.batch",
        "            state.batch",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_before_a_row_end_with_words[SecondPass]",
    ),
    Mutation(
        "training/loop.py",
        "self.session.context.parallel.share_buffers()\n        if reason",
        "if reason",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Codebook-2]",
    ),
    Mutation(
        "processes/hang_watch.py",
        '        "networks",\n',
        "",
        "processes/test_hangs.py::test_the_rank_that_the_others_wait_for_is_named_and_a_restart_helps",
    ),
    # A rank that waits for a device; a training in a thread; limits of process groups, and what they hold.
    Mutation(
        "processes/hang_watch.py",
        '        "processes/devices.py",\n',
        "",
        HANGS + "test_a_rank_that_waits_for_a_device_is_not_the_one_that_the_others_wait_for",
    ),
    Mutation(
        "processes/hang_watch.py",
        "own = stand_of(self._world.rank, self._watched)",
        "own = stand_of(self._world.rank, threading.main_thread().ident or 0)",
        HANGS + "test_the_line_that_hangs_is_named_and_the_run_fails",
    ),
    Mutation("processes/hang_watch.py", "limit_waiting(False)  # In groups", "pass  # In groups", GROUP_LIMITS),
    Mutation("processes/hang_watch.py", "limit_waiting(True)", "pass", GROUP_LIMITS),
    Mutation("processes/world.py", "if backend.options._timeout == before:", "if True:", GROUP_LIMITS),
    Mutation("processes/world.py", "            _has_failed.set()", "            pass", HELD),
    Mutation("processes/world.py", "if _has_failed.is_set():", "if True:", HELD),
    Mutation("calls/launching.py", "        ending_after_failure(),\n", "", HELD),
    Mutation(
        "networks/gradient_reducer.py",
        "self._averaged.pop(id(p), None) is not p.grad",
        "self._averaged.pop(id(p), None) is None",
        SITUATIONS + "test_replicas_train_what_one_process_trains[SecondByHand-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "and len(p._post_accumulate_grad_hooks) == 1:",
        ":",
        SITUATIONS + "test_replicas_train_what_one_process_trains[ScaledInHook-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "        else:\n            self._average_others(optimizer)",
        "",
        SITUATIONS + "test_replicas_train_what_one_process_trains[OwnWindows-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if losses else None",
        "",
        SITUATIONS + "test_replicas_train_what_one_process_trains[WeightThenRaw-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "part.to_dense() if part.is_sparse else part for part in parts",
        "part for part in parts",
        "networks/test_distributed.py::test_a_sparse_and_a_dense_gradient_of_ranks_are_averaged",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "+ which + 1) % _MODULUS",
        "+ 1) % _MODULUS",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_are_an_error_on_all[OtherOrder-2]",
    ),
    Mutation(
        "networks/gradient_reducer.py",
        "if kinds != self._kinds:",
        "if {*found} != known:",
        "networks/test_distributed.py::test_buckets_follow_the_data_type_of_a_network",
    ),
    Mutation(
        "networks/precision.py",
        "and (self._parallel is None or self._parallel.skip_pass())",
        "and self._parallel is None",
        SITUATIONS + "test_replicas_train_what_one_process_trains[NoItems-2]",
    ),
    Mutation(
        "networks/precision.py",
        "if scaler._scale is None:",
        "if False:",
        SITUATIONS + "test_replicas_train_what_one_process_trains[Half-2]",
    ),
    Mutation(
        "networks/parallel.py",
        "self.refresh()  # What the model has loaded",
        "pass  # What the model has loaded",
        SITUATIONS + "test_replicas_train_what_one_process_trains[OwnState-3]",
    ),
    Mutation(
        "training/session.py",
        "        self.context.parallel.close()\n",
        "",
        "networks/test_distributed.py::test_a_network_sends_nothing_after_a_fit",
    ),
    Mutation(
        "training/loop.py",
        "            if meets:\n                parallel.end_window()\n            if should_log:",
        "            if should_log:",
        SITUATIONS + "test_ranks_that_do_not_do_the_same_before_a_row_end_with_words[InBatchHook]",
    ),
    Mutation(
        "calls/step_inspector.py",
        "self.model._context.parallel.without_averages(),",
        "",
        "networks/test_distributed.py::test_a_replay_ends_when_only_one_rank_has_a_loss",
    ),
    Mutation(
        "training/loop.py",
        "run_folder=session.folder,",
        "",
        MODEL + "test_a_model_knows_its_data_and_its_run_folder",
    ),
    Mutation(
        "training/session.py",
        "mover, options, self.datamodule, self.folder, self.planned)",
        "mover, options)",
        MODEL + "test_a_model_knows_its_data_and_its_run_folder",
    ),
    Mutation(
        "model_internals/run_context.py",
        "self.trainer = self.datamodule =",
        "self.datamodule =",
        MODEL + "test_a_model_knows_its_data_and_its_run_folder",
    ),
    Mutation(
        "model_internals/inference.py",
        'candidates_of_run(path, "best"',
        'candidates_of_run(path, "last"',
        MODEL + "test_load_from_checkpoint_takes_the_best_of_a_run_folder",
    ),
    Mutation(
        "model_internals/inference.py",
        "except (CheckpointError, FileNotFoundError)",
        "except FileNotFoundError",
        MODEL + "test_load_from_checkpoint_takes_the_best_of_a_run_folder",
    ),
    Mutation(
        "model_internals/inference.py",
        'raise FileNotFoundError(f"{path}: this',
        'raise KeyError(f"{path}: this',
        MODEL + "test_load_from_checkpoint_of_a_run_folder_without_checkpoints_names_it",
    ),
    Mutation(
        "model_internals/inference.py",
        "signature.bind(**arguments)",
        "pass",
        MODEL + "test_load_from_checkpoint_says_how_hparams_work",
    ),
    Mutation(
        "training/resuming.py",
        'compare_parts(path, {**content, "model": states}, parts, session.tables["made"])',
        "pass",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[shape]",
    ),
    Mutation(
        "changes/misfits.py",
        "elif saved[path] != shape:",
        "elif False:",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[shape]",
    ),
    Mutation(
        "changes/misfits.py",
        "if path not in saved:",
        "if False:",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[added]",
    ),
    Mutation(
        "changes/misfits.py",
        "if path not in now:",
        "if False:",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[removed]",
    ),
    Mutation(
        "changes/misfits.py",
        "if name not in states and not isinstance(part, AttributeState)]",
        "if False]",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[another]",
    ),
    Mutation(
        "changes/misfits.py",
        "if sizes_now != sizes_saved:",
        "if False:",
        RESUME + "test_a_model_that_is_made_otherwise_does_not_resume_and_keeps_its_weights[groups]",
    ),
    Mutation(
        "changes/misfits.py",
        "if is_own and type(module)",
        "if False and type(module)",
        RESUME + "test_a_network_that_takes_other_names_may_resume",
    ),
    Mutation(
        "changes/misfits.py",
        "for name in states if name not in parts]",
        "for name in states if False]",
        MODEL + "test_an_unknown_name_in_the_loaded_state_is_an_error_that_names_it",
    ),
    Mutation(
        "training/resuming.py",
        "added.put_back(remaking.states,",
        "added.put_back(states,",
        CHANGED + "test_every_number_of_an_optimizer_is_the_one_of_now",
    ),
    Mutation(
        "training/resuming.py",
        'said += [f"{text}: used from step {step + 1} on" for text in remaking.changes]',
        "pass",
        CHANGED + "test_every_number_of_an_optimizer_is_the_one_of_now",
    ),
    Mutation(
        "changes/made.py",
        'if _name_of(before["class"]) != _name_of(made["class"]):',
        "if False:",
        CHANGED + "test_another_optimizer_is_an_error_that_names_both",
    ),
    Mutation(
        "training/checkpointer.py",
        '"tables": session.tables,',
        '"tables": {**session.tables, "made": {}},',
        CHANGED + "test_every_number_of_an_optimizer_is_the_one_of_now",
    ),
    Mutation(
        "changes/made.py",
        "if not of_optimizer and not of_schedules:\n            return",
        "if False:\n            return",
        CHANGED + "test_a_rate_that_a_hook_has_set_stays",
    ),
    Mutation(
        "changes/made.py",
        "schedulers[key].step()",
        "pass",
        CHANGED + "test_a_run_goes_on_with_the_rates_of_one_that_had_them_from_the_start[cosine-5]",
    ),
    Mutation(
        "changes/made.py",
        "return {name: _arguments(each) for name, each in arguments.items()}",
        "return None",
        CHANGED + "test_a_schedule_of_another_length_goes_on_as_if_it_always_had_it[our cosine]",
    ),
    Mutation(
        "changes/made.py",
        'return [*_differences(key, saved["numbers"], now["numbers"])]',
        "return []",
        CHANGED + "test_a_schedule_of_another_length_goes_on_as_if_it_always_had_it[cosine]",
    ),
    Mutation(
        "changes/made.py",
        'numbers["lr"] = numbers["lr"] * factor',
        "pass",
        CHANGED + "test_a_plateau_keeps_what_it_has_seen",
    ),
    Mutation(
        "changes/made.py",
        "            group.update(made)\n",
        "            pass\n",
        CHANGED + "test_a_second_phase_goes_on_with_the_rates_of_one_that_had_them_from_the_start",
    ),
    Mutation(
        "changes/made.py",
        "            schedulers[key].load_state_dict(state)\n",
        "            pass\n",
        CHANGED + "test_a_second_phase_goes_on_with_the_rates_of_one_that_had_them_from_the_start",
    ),
    Mutation(
        "changes/made.py",
        "if sum(numbers.values()) in finished and",
        "if False and",
        CHANGED + "test_a_second_phase_goes_on_with_the_rates_of_one_that_had_them_from_the_start",
    ),
    Mutation(
        "changes/made.py",
        "if plateaus and changed:",
        "if False:",
        CHANGED + "test_cuts_that_cannot_be_kept_are_named",
    ),
    Mutation(
        "changes/made.py",
        "state |= {part: value for part, value in self.states[key].items() if part in kept}",
        "pass",
        CHANGED + "test_a_plateau_keeps_what_it_has_seen",
    ),
    Mutation(
        "changes/made.py",
        "else max(map(_number_of_steps, inner), default=0)",
        "else 0",
        CHANGED + "test_a_run_goes_on_with_the_rates_of_one_that_had_them_from_the_start[chain-5]",
    ),
    Mutation(
        "loading/planned_steps.py",
        "if all(plan[name] == value for name, value in epochs.items()):",
        "if True:",
        PLAN + "test_the_number_is_right_and_the_schedule_follows_when_a_run_goes_on_otherwise",
    ),
    Mutation(
        "loading/planned_steps.py",
        'self._epoch, self._before = state["epoch"], state["step"] + state["skipped_steps"]',
        'self._epoch, self._before = state["epoch"], state["step"] + 1',
        PLAN + "test_the_number_is_right_and_the_schedule_follows_when_a_run_goes_on_otherwise",
    ),
    Mutation(
        "loading/planned_steps.py",
        'finished = finished if passes is None else passes["epoch_updates"]',
        "finished += 0",
        PLAN + "test_the_number_is_right_and_the_schedule_follows_when_a_run_goes_on_otherwise",
    ),
    Mutation(
        "loading/planned_steps.py",
        "total = min(limits)",
        "total = max(limits)",
        PLAN + "test_the_number_of_steps_is_known_in_setup_and_is_that_of_the_run",
    ),
    Mutation(
        "loading/split_loader.py",
        "order = range(self._num_samples(range(length)))",
        "order = range(length)",
        PLAN + "test_the_number_of_steps_is_known_in_setup_and_is_that_of_the_run",
    ),
    Mutation(
        "loading/split_loader.py",
        "length = len(split.dataset) if sampler is None else _length(sampler)\n        if",
        "length = len(split.dataset)\n        if",
        PLAN + "test_the_number_of_steps_is_known_in_setup_and_is_that_of_the_run",
    ),
    Mutation(
        "calls/launching.py",
        "World(size=call.processes)",
        "World()",
        PLAN + "test_the_number_is_known_in_every_call_and_in_the_process_that_launches_others",
    ),
    Mutation(
        "changes/comparing.py",
        "derived = [name for name in numbers if plans == (saved[name], hparams[name])]",
        "derived = numbers",
        PLAN + "test_an_hparam_that_was_chosen_and_not_planned_is_an_error_still",
    ),
    Mutation(
        "changes/comparing.py",
        "derived = [name for name in numbers if plans == (saved[name], hparams[name])]",
        "derived = numbers[:0]",
        PLAN + "test_the_number_is_right_and_the_schedule_follows_when_a_run_goes_on_otherwise",
    ),
    Mutation(
        "planning/training_plan.py",
        "if number == steps and number != epochs:",
        "if number > 0 and number != epochs:",
        PLAN + "test_a_schedule_that_is_stepped_otherwise_than_per_step_or_epoch_is_left_in_peace",
    ),
    Mutation(
        "planning/training_plan.py",
        "elif ends_epoch and number == epochs and max_epochs is not None:",
        "elif False:",
        PLAN + "test_a_schedule_that_does_not_fit_is_warned_of_once_it_is_seen_how_often_it_is_stepped",
    ),
    Mutation(
        "planning/schedule_reading.py",
        "return {*function.__code__.co_names} <= _PURE and all(map(_is_number, around)) and not has_effects",
        "return True",
        READING + "test_schedules_belong_to_their_optimizers_and_what_cannot_be_read_is_left_out",
    ),
    Mutation(
        "changes/made.py",
        "first = {id(part): key for key, part in list(own.items())[::-1] if id(part) not in inner}",
        "first = {id(part): key for key, part in list(own.items())[::-1]}",
        CHANGED + "test_what_the_model_holds_under_two_names_is_moved_once",
    ),
    Mutation(
        "changes/made.py",
        "numbers = {key: made[key] for key in keys if key in made}",
        "numbers = {key: made[key] for key in made if key != 'params'}",
        CHANGED + "test_numbers_that_have_not_changed_stay_as_the_run_has_made_them",
    ),
    Mutation(
        "changes/made.py",
        "(isinstance(value, Tensor) and value.numel() == 1)",
        "False",
        CHANGED + "test_a_rate_that_is_a_tensor_changes_too[none]",
    ),
    Mutation(
        "training/resuming.py",
        'changed_numbers(content["tables"]["made"], session.tables["made"])',
        "[]",
        CHANGED + "test_a_model_that_loads_its_state_itself_is_told_what_is_not_used",
    ),
    Mutation(
        "planning/training_plan.py",
        "if isinstance(part, Optimizer) and not part.state:",
        "if isinstance(part, Optimizer) and part.state:",
        PLAN + "test_a_checkpoint_has_the_size_that_the_plan_says_with_the_states_of_optimizers",
    ),
    Mutation(
        "planning/due.py",
        "        epochs = options.save_every_epochs - state.epoch % options.save_every_epochs\n",
        "        epochs = options.save_every_epochs\n",
        PLAN + "test_the_next_checkpoint_is_in_sight",
    ),
    Mutation(
        "training/checkpointer.py",
        "            self._safe_seconds = state.seconds\n",
        "",
        PLAN + "test_a_kill_that_would_lose_more_than_half_an_hour_is_warned_of_once",
    ),
    Mutation(
        "training/checkpointer.py",
        "            self._has_warned = True\n",
        "",
        PLAN + "test_a_kill_that_would_lose_more_than_half_an_hour_is_warned_of_once",
    ),
    Mutation(
        "training/resuming.py",
        'choice == "best" and not is_tried and _set_aside_newer',
        'choice == "best" and _set_aside_newer',
        PLAN + "test_the_plan_says_what_a_start_would_do_and_changes_nothing",
    ),
    Mutation(
        "calls/plan.py",
        "model=call.model._as_new()",
        "model=call.model",
        PLAN + "test_the_plan_says_what_a_start_would_do_and_changes_nothing",
    ),
    Mutation(
        "planning/schedule_reading.py",
        "formulas = [_formula(each) for each in scheduler._schedulers]",
        "formulas = [None for each in scheduler._schedulers] * 0 or [None]",
        READING + "test_the_highest_rate_of_a_long_schedule_is_found_and_reading_takes_nothing_per_step",
    ),
    Mutation(
        "planning/schedule_reading.py",
        "if self._turns() and bottom is not None",
        "if bottom is not None",
        READING + "test_a_schedule_that_fits_is_left_in_peace",
    ),
    Mutation(
        "planning/schedule_reading.py",
        "if has_end and is_far and rates[middle] - low > 0.15 * span:",
        "if has_end and is_far:",
        READING + "test_a_schedule_that_fits_is_left_in_peace",
    ),
    Mutation(
        "planning/schedule_reading.py",
        "own = [(key, part) for key, part in schedulers if moves(part, optimizer) and id(part) not in inner]",
        "own = [(key, part) for key, part in schedulers if moves(part, optimizer)]",
        READING + "test_schedules_belong_to_their_optimizers_and_what_cannot_be_read_is_left_out",
    ),
    Mutation(
        "changes/made.py",
        "place = next((i for i in range(min(len(old), len(new))) if old[i] != new[i]), None)",
        "place = None",
        CHANGED + "test_an_optimizer_that_trains_its_parameters_in_another_order_is_an_error",
    ),
    Mutation(
        "changes/made.py",
        ", frozen' * (name in frozen)}",
        "'}",
        CHANGED + "test_what_else_is_made_otherwise_is_said_and_takes_effect",
    ),
    Mutation(
        "changes/run_description.py",
        'for table in ("data", "environment"):',
        "for table in ():",
        CHANGED + "test_what_else_is_made_otherwise_is_said_and_takes_effect",
    ),
    Mutation(
        "changes/run_description.py",
        "return (list if isinstance(value, list) else tuple)(map(_plain, value))",
        "return list(map(_plain, value))",
        "training/test_ends.py::test_a_run_that_goes_on_has_never_had_that_validation",
    ),
    # A train split that has changed at a resume.
    Mutation(
        "loading/split_loader.py",
        "restored = self._begun if self._is_restored and samples > 0 else None",
        "restored = self._begun if self._is_restored else None",
        DATA + "test_nothing_is_said_where_an_epoch_begins",
    ),
    Mutation(
        "loading/split_loader.py",
        "            epoch = restored.epoch\n",
        "            pass\n",
        AS_IT_BEGAN + "[overfitting]",
    ),
    Mutation(
        "loading/split_loader.py",
        "len(split.dataset)  # It may",
        "self._length  # It may",
        DATA + "test_a_hook_that_grows_the_dataset_grows_it_at_a_resume_too",
    ),
    Mutation(
        "loading/split_loader.py",
        "begun = now if restored is None else restored",
        "begun = now",
        AS_IT_BEGAN + "[shuffled]",
    ),
    Mutation("loading/split_loader.py", "begun.check_samplers(now)", "pass", NO_ORDER + "[batches added]"),
    Mutation(
        "loading/split_loader.py",
        "seed_of_epoch(begun.seed, self._phase, epoch)",
        "seed_of_epoch(self._seed, self._phase, epoch)",
        AS_IT_BEGAN + "[other seed]",
    ),
    Mutation(
        "loading/split_loader.py", "            begun.length,\n", "            self._length,\n", AS_IT_BEGAN + "[grown]"
    ),
    Mutation(
        "loading/split_loader.py",
        "            begun.is_shuffled,\n",
        "            self._shuffle,\n",
        AS_IT_BEGAN + "[shuffled]",
    ),
    Mutation(
        "loading/split_loader.py",
        "sampler if begun.has_sampler else None",
        "sampler",
        AS_IT_BEGAN + "[a sampler that is added]",
    ),
    Mutation(
        "loading/split_loader.py",
        "            begun.epoch,\n",
        "            0,\n",
        LOADERS + "test_set_epoch_is_called_with_the_epoch",
    ),
    Mutation("loading/split_loader.py", "            return now  # Its", "            pass  # Its", SAID_ONCE),
    Mutation(
        "loading/split_loader.py", "digest_of(drawn, now) if", "None if", NO_ORDER + "[another order of the same class]"
    ),
    Mutation("loading/split_loader.py", "drawn if now.has_sampler else range(now.length)", "drawn", SAID_ONCE),
    Mutation(
        "loading/split_loader.py",
        "        self._is_restored = False  # Not",
        "        # Not",
        DATA + "test_tensors_in_memory_are_left_out_too",
    ),
    Mutation("loading/split_loader.py", "self._begun.order(drawn)", "drawn", AS_IT_BEGAN + "[shrunk]"),
    Mutation("loading/split_loader.py", 'if "begun" in state_dict:', "if False:", AS_IT_BEGAN + "[grown]"),
    Mutation(
        "loading/split_loader.py",
        'if "begun" in state_dict:',
        "if True:",
        DATA + "test_a_position_without_what_the_epoch_began_with_is_one_in_the_epoch_of_now",
    ),
    Mutation(
        "loading/begun_epoch.py",
        " and (has_either or before is not None)",
        "",
        AS_IT_BEGAN + "[a sampler that is added]",
    ),
    Mutation(
        "loading/begun_epoch.py", "has_either or before is not None", "before is not None", NO_ORDER + "[batches added]"
    ),
    Mutation(
        "loading/begun_epoch.py",
        "if self.digest != now.digest or",
        "if",
        NO_ORDER + "[another order of the same class]",
    ),
    Mutation("loading/begun_epoch.py", "or (self.digest is None and before != present)", "", LETTERS),
    Mutation(
        "loading/begun_epoch.py",
        "or (self.digest is None and before != present)",
        "or before != present",
        DATA + "test_another_sampler_that_draws_the_same_order_is_as_good",
    ),
    Mutation(
        "loading/begun_epoch.py", "if is_known and now.length < self.length", "if now.length < self.length", LETTERS
    ),
    Mutation("loading/begun_epoch.py", "(*self.cuts, (start, now.length))", "((start, now.length),)", STAYS_GONE),
    Mutation("loading/begun_epoch.py", "left_before - left)", "0)", SAID_ONCE),
    Mutation(
        "loading/begun_epoch.py",
        "first_samples(drawn, self.num_samples,",
        "first_samples(drawn, 10**9,",
        FIRST_BATCHES,
    ),
    Mutation(
        "loading/begun_epoch.py", "for start, length in self.cuts:", "for start, length in self.cuts[-1:]:", STAYS_GONE
    ),
    Mutation("loading/begun_epoch.py", "(len(batch), *batch)", "batch", NO_ORDER + "[batches of other sizes]"),
    Mutation(
        "loading/begun_epoch.py",
        "index if index >= 0 else index + now.length",
        "index",
        NO_ORDER + "[counted from another end]",
    ),
    Mutation("loading/begun_epoch.py", "except (TypeError, OverflowError):", "except OverflowError:", LETTERS),
    Mutation(
        "loading/begun_epoch.py",
        "if is_counted and self.num_samples != now.num_samples",
        "if self.num_samples != now.num_samples",
        SAID_ONCE,
    ),
    Mutation("loading/begun_epoch.py", " and (self._is_limited() or now._is_limited())", "", SAID_ONCE),
    Mutation("loading/begun_epoch.py", "if self.seed != now.seed:", "if False:", SAID_ONCE),
    Mutation("loading/begun_epoch.py", "if self._order_in_words() != now._order_in_words():", "if False:", SAID_ONCE),
    Mutation("loading/begun_epoch.py", "if pairs else None", "", SAID_ONCE),
    Mutation("loading/begun_epoch.py", "if self.num_gone == 1 else", "if False else", SAID_ONCE),
    Mutation("loading/begun_epoch.py", "if self.num_gone > 0:", "if True:", SAID_ONCE),
    Mutation(
        "loading/begun_epoch.py",
        '"" if self.length == now.length else f',
        '"" if True else f',
        NO_ORDER + "[grown with its sampler]",
    ),
    Mutation("loading/sample_order.py", "if end <= number]", "if end < number]", FIRST_BATCHES),
    Mutation(
        "loading/sample_order.py",
        "batch if end <= start else",
        "batch if end < start else",
        AS_IT_BEGAN + "[batches that stay, shrunk]",
    ),
    Mutation(
        "loading/sample_order.py",
        "for part in parts if len(part) > 0]",
        "for part in parts]",
        AS_IT_BEGAN + "[batches that stay, shrunk]",
    ),
    Mutation("loading/sample_order.py", "order[: max(start, length)]", "order[:length]", SAID_ONCE),
    Mutation("loading/sample_order.py", "rest[rest < length]", "rest", AS_IT_BEGAN + "[shrunk]"),
    Mutation(
        "loading/sample_order.py",
        " if int(number) < length]",
        "]",
        AS_IT_BEGAN + "[a sampler that stays, shrunk]",
    ),
    Mutation(
        "loading/train_data.py",
        'return saved if now is earlier else _without(saved, "begun", "source")',
        "return saved",
        PASSES + "test_a_split_that_is_replaced_is_read_from_the_position_of_the_other_over_resumes_too",
    ),
    Mutation(
        "loading/train_data.py",
        'return saved if now is earlier else _without(saved, "begun", "source")',
        'return _without(saved, "begun", "source")',
        PASS_AS_IT_BEGAN + "[grown]",
    ),
    Mutation(
        "loading/train_data.py",
        "            if state.epoch_batch == 0:\n                mine",
        "            if True:\n                mine",
        DATA + "test_a_split_that_a_hook_makes_anew_in_every_epoch_is_no_other_one_within_an_epoch",
    ),
    Mutation("loading/train_data.py", "_check_kind(loader, mine, is_inside)", "pass", OTHER_KIND),
    Mutation("loading/train_data.py", 'if is_inside and "source" in saved', 'if "source" in saved', OTHER_KIND),
    Mutation("loading/train_data.py", "self._passes is not None and self._passes.num_begun() > 0", "False", OTHER_KIND),
    Mutation(
        "loading/train_data.py",
        'is_inside and "source" in saved and',
        "is_inside and",
        PASSES + "test_a_split_that_is_replaced_is_read_from_the_position_of_the_other_over_resumes_too",
    ),
    Mutation(
        "loading/train_data.py",
        "        if is_resumed:\n            self._say",
        "        if True:\n            self._say",
        PASS_IS_NAMED,
    ),
    Mutation("loading/train_data.py", 'else ("pass", self._passes', 'else ("epoch", self._passes', PASS_IS_NAMED),
    Mutation("loading/train_data.py", '("pass", self._passes.number())', '("pass", state.epoch)', PASS_IS_NAMED),
    Mutation(
        "loading/train_data.py", "if self._ends_passes and self._passes is not None and", "if False and", NO_MORE_PASSES
    ),
    Mutation("loading/train_data.py", "            self._ends_passes = True\n", "", NO_MORE_PASSES),
    Mutation(
        "loading/train_data.py",
        "            self._passes = PassReader(mine",
        "            PassReader(mine",
        NO_MORE_PASSES,
    ),
    Mutation("docs/from_lightning.md", "| `self.num_training_steps`, in", "| `self.num_steps`, in", FROM_LIGHTNING),
    Mutation("other_trainers.py", '"training_step": "train_step', '"training_step": "step', FROM_LIGHTNING_ANSWERS),
    Mutation(
        "callbacks.py",
        "return self._run_model.run_folder",
        "return None",
        "test_callbacks.py::test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run",
    ),
    # Several updates of a batch.
    Mutation(
        "networks/precision.py",
        "        return Window(has_stepped or not has_skipped, has_skipped)\n",
        "        return Window(self.num_steps == num_steps + self._growth, has_skipped)\n",
        "test_model.py::test_several_updates_of_a_batch_are_those_of_a_loop_by_hand_and_count_as_one_step",
    ),
    # Several train splits.
    Mutation(
        "loading/several_loader.py",
        "if batches == 0:\n            self._begin",
        "if True:\n            self._begin",
        SEVERAL + "test_an_epoch_that_has_begun_ends_with_the_split_with_which_it_began",
    ),
    Mutation("loading/several_loader.py", "min(known, key", "max(known, key", SEVERAL_ENDS),
    Mutation("loading/several_loader.py", "        if self._ends is not None:", "        if False:", SEVERAL_ENDS),
    Mutation(
        "loading/several_loader.py",
        "name not in self.others or self._repeats",
        "name not in self.others",
        SEVERAL + "test_a_run_that_is_cut_after_any_step_ends_like_one_that_was_not[overfit]",
    ),
    Mutation("loading/several_loader.py", "(name not in self.others or self._repeats)", "True", SEVERAL_ENDS),
    Mutation(
        "loading/several_loader.py",
        "number = epoch if name == earlier else 0",
        "number = 0",
        SEVERAL + "test_another_split_may_end_the_epochs_that_follow",
    ),
    Mutation(
        "loading/several_loader.py",
        "self.others[name].load_state_dict(part)",
        "pass",
        SEVERAL + "test_a_run_that_is_cut_after_any_step_ends_like_one_that_was_not[longer]",
    ),
    Mutation(
        "loading/several_loader.py",
        "self.loaders[name].load_state_dict(part)",
        "pass",
        SEVERAL + "test_changed_data_of_a_begun_pass_count_from_its_next_one_on_and_a_line_says_so",
    ),
    Mutation(
        "loading/several_loader.py",
        "            self.others.update((name, passes)",
        "            list((name, passes)",
        SEVERAL + "test_a_hook_may_replace_a_split_which_is_read_from_the_position_of_the_other",
    ),
    Mutation(
        "loading/several_loader.py",
        "self.others[name].count(batch[2])",
        "self.others[name].count(batch[1])",
        SEVERAL + "test_the_number_of_ranks_may_change_anywhere",
    ),
    Mutation(
        "loading/several_loader.py",
        "        if len(known) < len(lengths):",
        "        if False:",
        SEVERAL + "test_several_splits_that_do_not_say_when_an_epoch_ends_are_an_error",
    ),
    Mutation("loading/passes.py", "self.number + (not self._repeats)", "self.number", SEVERAL_ENDS),
    Mutation(
        "loading/batches.py",
        'phase.removeprefix("train/") if phase.startswith("train/") else ""',
        '""',
        SEVERAL + "test_splits_of_the_same_data_have_other_orders_and_random_numbers",
    ),
    Mutation(
        "loading/train_data.py",
        'parts[name].get("pass_batches", is_inside) > 0',
        "is_inside",
        SEVERAL + "test_what_cannot_go_on_inside_of_an_epoch_or_a_pass_is_an_error",
    ),
    Mutation(
        "loading/train_data.py",
        "    elif parts:\n        is_same = False\n",
        "",
        SEVERAL + "test_what_cannot_go_on_inside_of_an_epoch_or_a_pass_is_an_error",
    ),
    Mutation(
        "loading/train_data.py",
        "part if now.loaders.get(name) is before.get(name) else _without",
        "part if True else _without",
        SEVERAL + "test_a_hook_may_replace_a_split_which_is_read_from_the_position_of_the_other",
    ),
    Mutation(
        "loading/train_data.py",
        "others[name].num_batches if name in others else num_begun",
        "num_begun",
        SEVERAL + "test_a_replayed_step_has_the_samples_of_every_split",
    ),
    Mutation(
        "loading/seeding.py",
        "_set_epoch_and_seed(loader, epoch, rng.derive_seed(seed, i), for_training)",
        "_set_epoch_and_seed(loader, epoch, seed, for_training)",
        "loading/test_custom_order.py::test_loaders_in_a_loader_have_orders_of_their_own_which_are_new_in_every_epoch",
    ),
    Mutation(
        "loading/seeding.py",
        "found += [item for item in items if isinstance(item, DataLoader)]",
        "pass",
        "loading/test_custom_order.py::test_an_order_that_is_drawn_when_an_epoch_begins_is_kept",
    ),
    Mutation(
        "loading/loaders.py",
        "[source, *loaders, *_zipped(source)]",
        "[source, *loaders]",
        LOADERS + "test_a_loader_that_gives_all_ranks_the_same_is_an_error_and_one_that_shares_is_not",
    ),
    Mutation(
        "loading/loaders.py",
        "[source, *loaders, *_zipped(source)]",
        "[source, *_zipped(source)]",
        LOADERS + "test_a_loader_that_gives_all_ranks_the_same_is_an_error_and_one_that_shares_is_not",
    ),
    Mutation(
        "loading/several_loader.py",
        'state_dict.get("parts", {}).items() if name',
        'state_dict["parts"].items() if name',
        SEVERAL + "test_what_cannot_go_on_inside_of_an_epoch_or_a_pass_is_an_error",
    ),
    # Splits that are turned off, and a number of steps for a quick check.
    Mutation(
        "training/session.py", "{} if self.options.limit_of(phase) == 0 else split_parts", "split_parts", LIMIT_OF_ZERO
    ),
    Mutation("loading/train_data.py", 'if self._options.limit_of("train") == 0:', "if False:", LIMIT_OF_ZERO),
    Mutation("calls/evaluate.py", "if options.limit_of(phase) == 0:", "if False:", LIMIT_OF_ZERO),
    Mutation(
        "options.py",
        "return int(self.fast_dev_run)",
        "return 1",
        TRAINING + "test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing",
    ),
    Mutation(
        "planning/due.py",
        "state.step >= start + options.fast_dev_run",
        "state.step > start",
        TRAINING + "test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing",
    ),
    Mutation(
        "calls/predict.py",
        "session.options.fast_dev_run or sys.maxsize",
        "1 if session.options.fast_dev_run else sys.maxsize",
        TRAINING + "test_fast_dev_run_uses_so_many_batches_of_everything_and_writes_nothing",
    ),
    Mutation(
        "tools/audit/looks.py",
        'name.split("/")[0] == "train"',
        'name == "train"',
        "tools/test_audit.py::test_several_train_splits_are_audited_too",
    ),
    Mutation(
        "tools/audit/program_data.py",
        'changed[""] if several is None else changed',
        "train",
        "tools/test_audit.py::test_several_train_splits_are_audited_too",
    ),
    # The batch size of all processes.
    Mutation(
        "loading/batches.py",
        "        return -(-total // world.size)\n",
        "        return total // world.size\n",
        GLOBAL + "test_evaluations_take_the_quotient_rounded_up_and_read_every_sample_once",
    ),
    Mutation(
        "loading/batches.py",
        "if not is_training(phase):\n        return -",
        "if False:\n        return -",
        GLOBAL + "test_evaluations_take_the_quotient_rounded_up_and_read_every_sample_once",
    ),
    Mutation(
        "loading/batches.py",
        "if total % (world.size * window) == 0:",
        "if True:",
        GLOBAL + "test_what_cannot_be_divided_is_an_error_that_says_what_fits",
    ),
    Mutation(
        "loading/batches.py",
        "return total // (world.size * window)",
        "return total // world.size",
        GLOBAL + "test_a_step_has_as_many_samples_whatever_shares_them",
    ),
    Mutation(
        "loading/batches.py",
        "if total % world.size > 0:",
        "if False:",
        GLOBAL + "test_what_cannot_be_divided_is_an_error_that_says_what_fits",
    ),
    Mutation(
        "loading/batches.py",
        "least = -(-total // (world.size * window)) * world.size * window",
        "least = -(-total // world.size) * world.size",
        GLOBAL + "test_what_cannot_be_divided_is_an_error_that_says_what_fits",
    ),
    Mutation(
        "loading/batches.py",
        "(steps < window, abs(steps - window))",
        "abs(steps - window)",
        GLOBAL + "test_what_cannot_be_divided_is_an_error_that_says_what_fits",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "        batch_size=batch_size,\n",
        "        batch_size=split.batch_size,\n",
        GLOBAL + "test_a_stream_gives_each_process_its_part_of_a_step",
    ),
    Mutation(
        "loading/train_data.py",
        "                    self._window,\n                    self._pins,",
        "                    1,\n                    self._pins,",
        GLOBAL + "test_it_is_an_error_before_anything_is_trained",
    ),
    Mutation(
        "loading/split_loader.py",
        "global_batch_size = self._batch_size * world.size",
        "global_batch_size = self._batch_size",
        GLOBAL + "test_a_limit_counts_batches_of_all_processes",
    ),
    Mutation(
        "tools/diff.py",
        "batch_size = total // max(1, processes * window)",
        "batch_size = total",
        "tools/test_diff.py::test_the_samples_of_a_step_are_told_of_a_global_batch_size_too",
    ),
    Mutation(
        "data.py",
        "        elif self.batch_size is not None:\n            raise",
        "        elif False:\n            raise",
        "test_data.py::test_a_bad_option_of_a_split_is_an_error_that_names_it",
    ),
    Mutation(
        "data.py",
        "if has_size or self.shuffle",
        "if self.batch_size is not None or self.shuffle",
        "test_data.py::test_a_bad_option_of_a_split_is_an_error_that_names_it",
    ),
    Mutation(
        "data.py",
        'require("global_batch_size", self.global_batch_size, integer(least=1))',
        "pass",
        "test_data.py::test_a_bad_option_of_a_split_is_an_error_that_names_it",
    ),
    # What a callback has of a run.
    Mutation(
        "callbacks.py",
        "else self._run_model._context.trainer",
        "else self._run_model.trainer",
        CALLBACKS + "test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run",
    ),
    Mutation(
        "callbacks.py",
        'raise self._not_running("datamodule")',
        'raise self._not_running("model")',
        CALLBACKS + "test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run",
    ),
    Mutation(
        "callbacks.py",
        '        if self._run_model is None:\n            raise self._not_running("model")',
        '        if False:\n            raise self._not_running("model")',
        CALLBACKS + "test_a_callback_has_the_trainer_of_its_model_and_none_outside_of_a_run",
    ),
    # Run folders in place of checkpoints.
    Mutation(
        "tools/choosing.py",
        "    if checkpoints.is_best(found):\n",
        "    if True:\n",
        COMMAND + "test_inspect_of_a_run_folder_says_which_file_it_shows",
    ),
    Mutation(
        "tools/choosing.py",
        'next(checkpoints.candidates("best"), None)',
        'next(checkpoints.candidates("last"), None)',
        COMMAND + "test_inspect_of_a_run_folder_says_which_file_it_shows",
    ),
    Mutation(
        "tools/choosing.py",
        "except (files.CheckpointError, ValueError) as error:",
        "except files.CheckpointError as error:",
        COMMAND + "test_inspect_of_a_run_folder_says_which_file_it_shows",
    ),
    Mutation(
        "tools/choosing.py",
        'if not (path / "checkpoints").is_dir():',
        "if False:",
        COMMAND + "test_wrong_use_is_answered_with_one_line_and_status_2",
    ),
    Mutation(
        "tools/checkpoints.py",
        "folder, reason = chosen_checkpoint(arguments.folder)",
        'folder, reason = arguments.folder, ""',
        SHARDED + "test_one_process_consolidates_inspects_tests_and_loads_a_folder",
    ),
    Mutation(
        "tools/run_files.py",
        "if (each / file).exists())",
        "if each.is_dir())",
        COMMAND + "test_plot_draws_every_run_of_a_folder",
    ),
    Mutation(
        "tools/run_files.py",
        "    if (path / file).exists():\n",
        "    if True:\n",
        COMMAND + "test_plot_draws_every_run_of_a_folder",
    ),
    # Loggers of a run that goes back.
    Mutation(
        "training/resuming.py",
        "OF_THE_END.issuperset(options) or _began_otherwise(session)",
        "OF_THE_END.issuperset(options)",
        "test_loggers.py::test_a_logger_is_told_that_the_rows_of_a_start_between_were_of_another_configuration",
    ),
    Mutation(
        "training/run_loggers.py",
        '"branch" if differs and hasattr(logger, "branch") else "rewind"',
        '"rewind"',
        LOGGERS + "test_a_logger_is_told_that_a_training_goes_back_or_is_another_if_it_wants_to_know",
    ),
    Mutation(
        "training/run_loggers.py",
        '"branch" if differs and hasattr(logger, "branch") else "rewind"',
        '"branch" if differs else "rewind"',
        LOGGERS + "test_a_logger_is_told_that_a_training_goes_back_or_is_another_if_it_wants_to_know",
    ),
    Mutation(
        "training/resuming.py",
        "    newer = checkpoints.newer_than(best)\n    if not newer:\n        return False\n",
        "    newer = checkpoints.newer_than(best)\n    if not newer:\n        return True\n",
        LOGGERS + "test_a_logger_is_told_that_a_training_goes_back_or_is_another_if_it_wants_to_know",
    ),
    Mutation(
        "training/training_log.py",
        'goes_back |= session.options.resume == "new" and not',
        "goes_back |= not",
        LOGGERS + "test_a_logger_is_told_that_a_training_goes_back_or_is_another_if_it_wants_to_know",
    ),
    Mutation(
        "loggers.py",
        "for point in history if point.step <= step]",
        "for point in history]",
        LOGGERS + "test_mlflow_has_the_curve_that_holds_in_a_child_of_the_run_that_went_further",
    ),
    Mutation(
        "loggers.py",
        '{"mlflow.parentRunId": run_id}',
        "{}",
        LOGGERS + "test_mlflow_has_the_curve_that_holds_in_a_child_of_the_run_that_went_further",
    ),
    Mutation(
        "loggers.py",
        "self._begin(None, parent=run.id, last_step=step)",
        "self._begin(run.id)",
        LOGGERS + "test_wandb_has_the_new_rows_in_a_run_that_names_the_one_that_went_further",
    ),
    Mutation(
        "loggers.py",
        'run.config.update({"parent_run": parent})',
        "pass",
        LOGGERS + "test_wandb_has_the_new_rows_in_a_run_that_names_the_one_that_went_further",
    ),
    Mutation(
        "loggers.py",
        'if row["step"] <= last_step]',
        "]",
        LOGGERS + "test_wandb_has_the_new_rows_in_a_run_that_names_the_one_that_went_further",
    ),
    # Every row once, and nothing of others.
    Mutation(
        "training/session.py",
        "keeps=not options.fast_dev_run and method",
        "keeps=method",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "training/session.py",
        'and method not in ("replay", "plan")',
        "",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "loggers.py",
        "            return _Nothing()\n        if self._writer",
        "            return None\n        if self._writer",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "loggers.py",
        "            self._writer.flush()\n",
        "            pass\n",
        LOGGERS + "test_after_a_random_sequence_of_calls_each_logger_has_every_row_once",
    ),
    Mutation(
        "loggers.py",
        "os.truncate(path, saved[path.name])",
        "pass",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "loggers.py",
        "                    path.unlink()\n",
        "                    pass\n",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "loggers.py",
        "            if not ends or self._digest in ends:\n",
        "            if True:\n",
        LOGGERS + "test_runs_with_one_folder_of_tensorboard_are_beside_each_other_and_so_is_what_is_taken_back",
    ),
    Mutation(
        "loggers.py",
        "                shutil.copyfile(path, target / path.name)\n",
        "                pass\n",
        LOGGERS + "test_runs_with_one_folder_of_tensorboard_are_beside_each_other_and_so_is_what_is_taken_back",
    ),
    Mutation(
        "loggers.py",
        "(run_folder or os.urandom(8).hex())",
        '(run_folder or "")',
        LOGGERS + "test_runs_with_one_folder_of_tensorboard_are_beside_each_other_and_so_is_what_is_taken_back",
    ),
    Mutation(
        "metrics/rows.py",
        "_write(before, next(path for path in found if not os.path.lexists(path)))",
        "pass",
        LOGGERS + "test_a_file_of_rows_that_a_training_begins_anew_is_set_aside",
    ),
    Mutation(
        "training/training_log.py",
        "        if self._jsonl is None or self._jsonl.end is None:",
        "        if True:",
        LOGGERS + "test_tensorboard_shows_everything_once_after_cuts_and_nothing_of_a_call_that_is_not_kept",
    ),
    Mutation(
        "loggers.py",
        "            if owner == self._run_folder or",
        "            if True or",
        LOGGERS + "test_mlflow_has_all_rows_of_each_of_the_runs_with_one_id_file",
    ),
    Mutation(
        "loggers.py",
        "            if own:\n                self._path",
        "            if False:\n                self._path",
        LOGGERS + "test_mlflow_has_all_rows_of_each_of_the_runs_with_one_id_file",
    ),
    Mutation(
        "loggers.py",
        "self._later[name][self._step] -= self._points[name]",
        "pass",
        LOGGERS + "test_mlflow_has_all_rows_of_each_of_the_runs_with_one_id_file",
    ),
    Mutation(
        "loggers.py",
        '"reinit": "create_new"',
        '"reinit": None',
        LOGGERS + "test_two_wandb_loggers_and_a_run_of_the_program_have_what_belongs_to_each",
    ),
    Mutation(
        "loggers.py",
        'own in self._read()["open"]\n',
        "False\n",
        LOGGERS + "test_wandb_has_every_row_in_another_run_if_a_kill_has_lost_some_of_the_first",
    ),
    Mutation(
        "loggers.py",
        '_MLFLOW_WORDS.get(found[0], f"_x{ord(found[0]):x}_")',
        '"_"',
        LOGGERS + "test_different_names_are_different_names_that_mlflow_takes",
    ),
    # Checkpoints that are gone.
    Mutation(
        "checkpoints/manifest.py",
        '        self._warn_of_gone([entry["file"] for entry in gone if _UNSURE not in entry])\n',
        "",
        FOLDER + "test_a_checkpoint_that_is_gone_is_named_once_when_one_is_chosen",
    ),
    Mutation(
        "checkpoints/manifest.py",
        "for entry in gone if _UNSURE not in entry])",
        "for entry in gone])",
        FOLDER + "test_a_file_that_a_kill_has_prevented_is_no_loss",
    ),
    Mutation(
        "checkpoints/manifest.py",
        "listed[name].pop(_UNSURE, None)",
        "pass",
        FOLDER + "test_a_file_that_a_kill_has_prevented_is_no_loss",
    ),
    Mutation(
        "checkpoints/folder.py",
        "unsure={save.path.name, *save.deleted}",
        "unsure={save.path.name}",
        FOLDER + "test_a_file_that_a_kill_has_prevented_is_no_loss",
    ),
    Mutation(
        "checkpoints/folder.py",
        "not in moved]\n        self._manifest.write(self._entries)\n",
        "not in moved]\n",
        RESUME + "test_a_run_that_went_back_to_the_best_goes_on_when_it_is_started_again",
    ),
    Mutation(
        "checkpoints/manifest.py",
        'names = [name] if name.endswith(".pth") else [name, f"{name}.pth"]',
        "names = [name]",
        SHARDED + "test_a_file_that_was_made_of_a_folder_takes_its_place_in_the_run",
    ),
    Mutation(
        "checkpoints/manifest.py",
        'is_own = group == "checkpoints" and name == entry["file"]',
        'is_own = group == "checkpoints"',
        SHARDED + "test_a_file_that_was_made_of_a_folder_takes_its_place_in_the_run",
    ),
    # The folder of a run with resume="new".
    Mutation(
        "checkpoints/run_folders.py",
        "            path.mkdir()\n",
        "            path.mkdir(exist_ok=True)\n",
        CLAIMING + "test_of_many_that_ask_at_once_each_gets_a_folder",
    ),
    Mutation(
        "checkpoints/run_folders.py",
        "if match is not None and _owner(path) is not None:",
        "if match is not None:",
        CLAIMING + "test_the_number_is_the_next_after_the_highest_and_other_runs_do_not_count",
    ),
    Mutation(
        "checkpoints/run_folders.py",
        "if is_restarted and _owner(path) == owner]",
        "if is_restarted]",
        CLAIMING + "test_a_job_that_is_queued_again_goes_on_in_its_own_folders",
    ),
    Mutation(
        "calls/claiming.py",
        ", fit {_claims[named]}",
        "",
        CLAIMING + "test_a_job_that_is_queued_again_goes_on_in_its_own_folders",
    ),
    Mutation(
        "calls/claiming.py",
        "is_restarted=is_restarted()",
        "is_restarted=False",
        CLAIMING + "test_under_torchrun_one_rank_claims_and_a_restart_goes_on_there",
    ),
    Mutation(
        "calls/claiming.py",
        "if world.is_main and run_folders.give_back(folder):",
        "if False:",
        CLAIMING + "test_a_training_that_fails_before_it_begins_gives_its_folder_back",
    ),
    Mutation(
        "calls/claiming.py",
        "            del model._folders[named]\n",
        "            pass\n",
        CLAIMING + "test_a_training_that_fails_before_it_begins_gives_its_folder_back",
    ),
    Mutation(
        "checkpoints/run_folders.py",
        "    if not files <=",
        "    if False and not files <=",
        CLAIMING + "test_a_folder_stays_in_which_a_training_has_begun_or_there_are_files_of_others",
    ),
    Mutation(
        "training/resuming.py",
        "        session.planned.goes_on(None if content is None else _header_of(content))\n",
        "",
        "training/test_plan.py::test_the_steps_are_planned_from_the_checkpoint_that_can_be_read",
    ),
    Mutation(
        "calls/launching.py",
        'if call.method == "fit" and not is_worker:',
        'if call.method == "fit":',
        CLAIMING + "test_launched_processes_use_the_folder_and_go_on_there_when_they_are_started_again",
    ),
    Mutation(
        "calls/launching.py",
        'if call.method == "fit" and not is_worker:',
        "if not is_worker:",
        CLAIMING + "test_later_calls_use_the_folder_of_the_model_and_with_another_model_the_newest",
    ),
    Mutation(
        "calls/replay.py",
        '("auto", "never", "new", "best")',
        '("auto", "never", "best")',
        CLAIMING + "test_later_calls_use_the_folder_of_the_model_and_with_another_model_the_newest",
    ),
    Mutation(
        "training/session.py",
        "return model._folders.get(named) or newest(named)",
        "return newest(named)",
        CLAIMING + "test_later_calls_use_the_folder_of_the_model_and_with_another_model_the_newest",
    ),
    Mutation(
        "training/session.py",
        "return model._folders.get(named) or newest(named)",
        "return model._folders.get(named) or named",
        CLAIMING + "test_later_calls_use_the_folder_of_the_model_and_with_another_model_the_newest",
    ),
    Mutation(
        "training/session.py",
        "self.folder.with_name(self.world.broadcast(self.folder.name))",
        "self.folder",
        CLAIMING + "test_all_ranks_have_the_folder_that_is_the_newest_for_rank_0",
    ),
    Mutation(
        "training/training_log.py",
        '"run_folder": str(session.folder), ',
        "",
        CLAIMING + "test_each_training_has_a_folder_of_its_own_which_all_of_its_files_name",
    ),
    Mutation(
        "training/session.py",
        "return directory / options.root / (",
        "return Path(options.root) / (",
        MOVED,
    ),
    Mutation(
        "training/resuming.py",
        "    path = session.directory / choice\n",
        "    path = Path(choice)\n",
        MOVED,
    ),
    Mutation("calls/predict.py", "file = call.directory / path", "file = Path(path)", MOVED),
    Mutation(
        "calls/launching.py",
        "call = Call(method, trainer, model, datamodule, 1, directory, shutdown)",
        "call = Call(method, trainer, model, datamodule, 1, Path.cwd(), shutdown)",
        CLAIMING + "test_two_programs_that_start_at_the_same_moment_have_two_folders",
    ),
    Mutation(
        "checkpoints/folder.py",
        "set(save.deleted).difference(left)",
        "set(save.deleted)",
        FOLDER + "test_a_file_that_cannot_be_deleted_is_named_once_and_deleted_by_a_later_save",
    ),
    Mutation(
        "checkpoints/folder.py",
        "if name not in self._undeleted:",
        "if True:",
        FOLDER + "test_a_file_that_cannot_be_deleted_is_named_once_and_deleted_by_a_later_save",
    ),
    Mutation(
        "checkpoints/folder.py",
        "        except OSError as error:\n            if name not in",
        "        except IsADirectoryError as error:\n            if name not in",
        FOLDER + "test_a_file_that_cannot_be_deleted_is_named_once_and_deleted_by_a_later_save",
    ),
    Mutation(
        "checkpoints/folder.py",
        "self._manifest.write(self._entries, unsure=left)",
        "self._manifest.write(_without(save.entries, set(save.deleted)))",
        FOLDER + "test_the_run_after_deletes_what_could_not_be_deleted",
    ),
    Mutation(
        "checkpoints/files.py",
        "            path.unlink(missing_ok=True)\n    except OSError",
        "            path.unlink(missing_ok=True)\n    except ZeroDivisionError",
        FOLDER + "test_the_run_after_deletes_what_could_not_be_deleted",
    ),
    Mutation(
        "checkpoints/files.py",
        "    if temporary.is_dir():\n        shutil.rmtree(temporary)\n",
        "",
        FOLDER + "test_what_is_left_of_a_sharded_one_that_cannot_be_deleted_is_deleted_by_another_call",
    ),
    Mutation(
        "training/monitor.py",
        "self.is_unknown = self._session.options.monitor is not None",
        "self.is_unknown = False",
        RESUME + "test_another_monitor_at_a_resume_starts_its_verdicts_anew",
    ),
    Mutation("object_tables.py", ' or module_name.startswith("."):', ":", "test_config.py"),
    Mutation("tools/checkpoints.py", "        folder = folder.resolve()\n", "        pass\n", CONSOLIDATED),
    # What is locked.
    Mutation(
        "tools/lock.py",
        'is_exact = locked["environment"] == now["environment"]',
        "is_exact = True",
        LOCKED + "where_versions_differ_rounding_is_no_difference",
    ),
    Mutation(
        "tools/lock.py",
        'if len(locked["steps"]) != len(now["steps"]):',
        "if False:",
        LOCKED + "what_differs_first_from_a_lock_is_named_with_what_has_changed",
    ),
    Mutation(
        "tools/lock.py",
        "            self.model.request_stop()\n",
        "            pass\n",
        LOCKED + "what_differs_first_from_a_lock_is_named_with_what_has_changed",
    ),
    Mutation(
        "tools/lock.py",
        "        sys.exit(1)\n",
        "        pass\n",
        LOCKED + "the_commands_write_a_lock_and_exit_with_what_they_have_found",
    ),
    # The step with the highest loss.
    Mutation("metrics/accumulator.py", 'if reduce == "mean" or reduce == "max":', 'if reduce == "max":', WORST),
    Mutation("calls/replay.py", "step if after is None else after + 1", "step", WORST),
    # Whether a replay is as recorded.
    Mutation("calls/step_inspector.py", "return value == recorded or", "return True or", RECORDED),
    Mutation(
        "calls/step_inspector.py",
        '[*(log.rows or []), {"step": self._step, **log.digests()}]',
        "[*(log.rows or [])]",
        RECORDED,
    ),
    # Locks that somebody has changed by hand.
    Mutation(
        "tools/lock.py",
        "not all(isinstance(content.get(name), dict) for name in _TABLES)",
        "False",
        LOCKED + "the_commands_write_a_lock_and_exit_with_what_they_have_found",
    ),
    Mutation(
        "tools/lock.py",
        'and all(isinstance(step, dict) and type(step.get("step")) is int for step in steps)',
        "",
        LOCKED + "the_commands_write_a_lock_and_exit_with_what_they_have_found",
    ),
    Mutation(
        "tools/lock.py",
        "number(before) is None or number(after) is None",
        "before is None or after is None",
        LOCKED + "where_versions_differ_rounding_is_no_difference",
    ),
    # The verdict at the end.
    Mutation(
        "training/verdict.py",
        "0 if self._step is None else step - self._step, step",
        "step - (self._step or 0), step",
        WAITED,
    ),
    Mutation("training/verdict.py", "and waited >= _LONG_WAIT", "", WAITED),
    Mutation("training/verdict.py", "if parts[rank] < _LARGE_WAIT:", "if parts[rank] <= 0:", WAITED),
    Mutation("training/verdict.py", "if others and parts[rank] - max(others) >= _LARGE_WAIT:", "if others:", SLOW),
    Mutation("training/verdict.py", "if rises >= _OFTEN * (len(half) - 1):", "if True:", GROWS),
    Mutation("training/verdict.py", " or half[-1] - half[0] < _GROWTH * half[0]", "", GROWS),
    Mutation("training/verdict.py", "self._memory[::2], 2 * self._every", "self._memory, self._every", GROWS),
    Mutation("training/verdict.py", "lost > 3 * noise and ", "", WORSE),
    Mutation("training/verdict.py", "lost > 3 * noise and lost > gained / 10", "lost > 3 * noise", WORSE),
    Mutation("training/verdict.py", "len(scores) < _FEWEST_SCORES or ", "", WORSE),
    Mutation("training/verdict.py", "score if is_higher_better else -score", "score", WORSE),
    Mutation("training/verdict.py", "low == high == rate and", "low == high and", UNMOVED),
    Mutation("training/verdict.py", "and number >= _FEWEST_RATES ", "", UNMOVED),
    Mutation(
        "training/training_report.py",
        "self._initial_rates() if is_whole else {}",
        "self._initial_rates()",
        VERDICT + "a_run_says_it_once_on_the_screen_and_in_its_log",
    ),
    Mutation(
        "training/training_report.py",
        "not (is_function or isinstance(",
        "not (isinstance(",
        VERDICT + "a_run_says_it_once_on_the_screen_and_in_its_log",
    ),
    # Steps that are computed twice.
    Mutation(
        "model_internals/rollback.py",
        'if hasattr(value, "__dict__") and self._is_open(value):',
        "if False:",
        ONE_UPDATE,
    ),
    Mutation(
        "model_internals/rollback.py", 'has_any = hasattr(value, "__dict__") or', "has_any = attributes or", ONE_UPDATE
    ),
    Mutation("model_internals/rollback.py", "isinstance(value, bytearray | array)", "False", ONE_UPDATE),
    Mutation(
        "model_internals/rollback.py",
        "return tensor.data_ptr(), tensor.shape, tensor.stride()",
        "return (tensor.data_ptr(),)",
        ONE_UPDATE,
    ),
    Mutation(
        "training/step_verifier.py",
        "                del module._forward_hooks[key]\n",
        "                pass\n",
        RIGHT_VERIFIED + "[copy]",
    ),
    Mutation("model_internals/rollback.py", "own.is_nested or ", "", RIGHT_VERIFIED + "[nested]"),
    Mutation(
        "model_internals/step_tap.py",
        '["backward"](loss, *args, **kwargs)',
        '["backward"](loss, weight)',
        RIGHT_VERIFIED + "[backward]",
    ),
    Mutation(
        "model_internals/step_tap.py",
        "is self._wrappers[name]:",
        "is not None:",
        VERIFIED + "test_a_step_that_a_verified_step_has_assigned_stays",
    ),
    Mutation(
        "training/step_verifier.py",
        "if self._fault is not None:",
        "if False:",
        VERIFIED + "test_a_step_that_catches_errors_does_not_hide_a_difference",
    ),
    Mutation("training/step_verifier.py", "self._on_outputs.append(", "str(", RIGHT_VERIFIED + "[leaves]"),
    Mutation(
        "training/step_verifier.py",
        "return _OutputHook, ()",
        "return object.__reduce_ex__(self, 2)",
        RIGHT_VERIFIED + "[copy]",
    ),
    Mutation(
        "model_internals/rollback.py", "if own.layout is torch.sparse_coo:", "if False:", RIGHT_VERIFIED + "[sparse]"
    ),
    Mutation(
        "model_internals/rollback.py", " and not isinstance(value, random.SystemRandom)", "", RIGHT_VERIFIED + "[file]"
    ),
    Mutation(
        "metrics/digests.py",
        " or tensor.is_nested)",
        ")",
        DIGESTED + "test_a_digest_of_a_batch_reads_what_its_tensors_have_and_passes_over_the_rest",
    ),
    Mutation(
        "metrics/digests.py",
        "if tensor.is_neg():",
        "if False:",
        DIGESTED + "test_a_digest_of_a_batch_reads_what_its_tensors_have_and_passes_over_the_rest",
    ),
    Mutation(
        "training/step_verifier.py",
        "            after_optimizer_step=self._after_optimizer_step,\n",
        "",
        RIGHT_VERIFIED + "[large average, accumulated]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "functools.partial(list.__setitem__, value",
        "functools.partial(lambda *a: 0, value",
        ONE_UPDATE,
    ),
    Mutation("model_internals/rollback.py", "functools.partial(_fill, value, [*value])", "lambda: None", ONE_UPDATE),
    Mutation(
        "model_internals/rollback.py",
        "        kind.update(value, kept)\n",
        "        kind.update(value, kind.fromkeys(kept))\n",
        ONE_UPDATE,
    ),
    Mutation("model_internals/rollback.py", "now is not before or each is not other", "each is not other", ONE_UPDATE),
    Mutation("model_internals/rollback.py", "if isinstance(value, torch.Generator):", "if False:", ONE_UPDATE),
    Mutation("model_internals/rollback.py", "if isinstance(value, random.Random) and", "if False and", ONE_UPDATE),
    Mutation("model_internals/rollback.py", "if isinstance(value, of_numpy.RandomState):", "if False:", ONE_UPDATE),
    Mutation("model_internals/rollback.py", "if isinstance(value, of_numpy.Generator):", "if False:", ONE_UPDATE),
    Mutation(
        "model_internals/rollback.py",
        "functools.partial(value.__setitem__, ..., value.copy())",
        "lambda: None",
        ONE_UPDATE,
    ),
    Mutation(
        "model_internals/rollback.py", "functools.partial(_copy_back, own, own.clone())", "lambda: None", ONE_UPDATE
    ),
    Mutation("model_internals/rollback.py", "        tensor.data = own\n", "        pass\n", ONE_UPDATE),
    Mutation("model_internals/rollback.py", "        tensor.grad = gradient\n", "        pass\n", ONE_UPDATE),
    Mutation(
        "model_internals/rollback.py",
        "        tensor.requires_grad_(requires_grad)\n",
        "        pass\n",
        RIGHT_VERIFIED + "[toggling]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "            object.__setattr__(value, name, kept[name])\n",
        "            pass\n",
        ONE_UPDATE,
    ),
    Mutation(
        "model_internals/rollback.py",
        "slice(0, 1) if step == 0 else slice(None)",
        "slice(None)",
        RIGHT_VERIFIED + "[toggling]",
    ),
    Mutation(
        "model_internals/rollback.py",
        "isinstance(value, Iterator) and not isinstance(value, io.IOBase)",
        "False",
        NOT_VERIFIED,
    ),
    Mutation("model_internals/rollback.py", "isinstance(value, _OPEN_OF_PYTORCH)", "False", ONE_UPDATE),
    Mutation(
        "model_internals/rollback.py",
        '        if gradient is not None:\n            yield "grad", gradient\n',
        "",
        VERIFIED_BITS + "[accumulated]",
    ),
    Mutation(
        "training/step_verifier.py", "            rng.set_state(random_numbers, context.device)\n", "", ONE_UPDATE
    ),
    Mutation("training/step_verifier.py", "[context.precision, model._tables, ", "[", VERIFIED_BITS + "[accumulated]"),
    Mutation("training/step_verifier.py", ', "batch": batch}', "}", ONE_UPDATE),
    Mutation("training/step_verifier.py", "context.logging_to(MetricAccumulator(context.device)), ", "", ONE_UPDATE),
    Mutation(
        "training/step_verifier.py", "                raise _UpdateReached\n", "                pass\n", ONE_UPDATE
    ),
    Mutation("training/step_verifier.py", "|= len(self._optimizers) > 1", "|= False", FAULTS + "[second-2]"),
    Mutation(
        "training/step_verifier.py",
        "        elif self._has_several_updates or self._num_updates == 1:\n            self._compare(at_end=False)\n",
        "        elif self._has_several_updates or self._num_updates == 1:\n            pass\n",
        FAULTS,
    ),
    Mutation(
        "training/step_verifier.py",
        "            self._compare(at_end=True)\n",
        "",
        VERIFIED + "test_a_fault_in_a_micro_batch_is_seen_before_the_update_of_its_window",
    ),
    Mutation("training/step_verifier.py", 'self._note(f"the output of {where}", tensor)', "pass", FAULTS),
    Mutation(
        "training/step_verifier.py", "                if tensor.requires_grad:\n", "                if False:\n", FAULTS
    ),
    Mutation("training/step_verifier.py", '        self._note("the loss", ', '        str("the loss", ', FAULTS),
    Mutation("training/step_verifier.py", "            self._note(prefix + ", "            str(prefix + ", FAULTS),
    Mutation(
        "training/step_verifier.py",
        "if key not in second), None) if is_whole",
        "if key not in second), None) if False",
        FAULTS,
    ),
    Mutation("training/step_verifier.py", "        if key not in first:\n", "        if False:\n", FAULTS),
    Mutation(
        "training/step_verifier.py",
        "                if digest != digests[name]:\n",
        "                if False:\n",
        NOT_VERIFIED,
    ),
    Mutation(
        "training/step_verifier.py",
        "if any(map(callable, (*arguments[1:], *options.values()))):",
        "if False:",
        NOT_VERIFIED,
    ),
    Mutation(
        "training/step_verifier.py",
        "            self._has_several_updates = True\n",
        "            pass\n",
        VERIFIED + "test_several_updates_by_one_optimizer_are_verified_from_the_second_time_on",
    ),
    Mutation(
        "training/step_verifier.py",
        "                if _has_changed(tensor, *version):\n",
        "                if False:\n",
        VERIFIED + "test_weights_that_change_before_a_later_update_are_an_error_too",
    ),
    Mutation(
        "training/step_verifier.py", "is_needed = self._session.world.size > 1", "is_needed = False", RANKS_VERIFIED
    ),
    Mutation("training/step_verifier.py", "causes or found)", "found)", RANKS_VERIFIED),
    Mutation(
        "training/step_verifier.py", ".move_to_end(handle.id, last=False)", ".move_to_end(handle.id)", SHARDS_VERIFIED
    ),
    Mutation("training/step_verifier.py", "if step < self._first_step else", "if False else", COMPUTED_TWICE),
    Mutation("training/step_verifier.py", "return due if self._is_attached else due - 1", "return due", COMPUTED_TWICE),
    Mutation(
        "training/loop.py",
        ", contextlib.closing(self.verifier):",
        ":",
        VERIFIED + "test_a_fault_in_a_micro_batch_is_seen_before_the_update_of_its_window",
    ),
    Mutation(
        "training/loop.py",
        "min(self.stop.next_check(), self.verifier.prepare())",
        "self.stop.next_check()",
        COMPUTED_TWICE,
    ),
    Mutation("calls/replay.py", "        verify_every_steps=None,\n", "", COMPUTED_TWICE),
    Mutation("tools/lock.py", "            verify_every_steps=None,\n", "", COMPUTED_TWICE),
    Mutation("tools/audit/processes.py", '        "verify_every_steps": None,\n', "", COMPUTED_TWICE),
    # Why two runs differ.
    Mutation(
        "tools/diff.py",
        "None not in weights and weights[0] != weights[1]",
        "False",
        "tools/test_diff.py::test_json_has_the_keys_that_the_page_names",
    ),
    Mutation("tools/diff.py", "None not in (before, now) and before != now", "False", PLANTED_CAUSES),
    Mutation("tools/diff.py", "if resumed[0] != resumed[1]:", "if False:", PLANTED_CAUSES),
    Mutation("tools/diff.py", " and not self.checkpoints.unread", "", UNREAD),
    Mutation(
        "tools/audit/processes.py",
        "except (Exception, SystemExit) as error:",
        "except Exception as error:",
        NOTHING_CHECKED,
    ),
    Mutation(
        "tools/audit/processes.py", 'shown = "" if isinstance(error, ConfigError) else ', "shown = ", NOTHING_CHECKED
    ),
    Mutation("tools/diff.py", "for why in found.checkpoints.unread:", "for why in ():", UNREAD),
    Mutation("tools/diff.py", "            must_be_seen = True\n", "            raise\n", UNREAD),
    Mutation(
        "config.py",
        "        if not callable(make):",
        "        if False:",
        "test_config.py::test_a_function_that_a_file_does_not_have_is_named",
    ),
    Mutation(
        "object_tables.py",
        "    if not callable(found):",
        "    if False:",
        "test_config.py::test_a_class_that_is_a_number_is_told_from_one_that_is_missing",
    ),
    Mutation("tools/diff.py", "    if code:\n", "    if False:\n", PLANTED_CAUSES),
    Mutation("tools/diff.py", 'elif "batch_digest" in first.what', "elif False", PLANTED_CAUSES),
    # What rows have to tell runs apart.
    Mutation(
        "metrics/digests.py",
        "return [*parameters.values(), *buffers.values()]",
        "return [*buffers.values(), *parameters.values()]",
        DIGESTED + "test_the_digest_of_a_network_is_that_of_its_parameters_and_buffers_each_once",
    ),
    Mutation(
        "metrics/digests.py",
        "key = device, first, length",
        "key = device, first, 1",
        DIGESTED + "test_the_digest_of_a_network_is_that_of_its_parameters_and_buffers_each_once",
    ),
    Mutation(
        "training/training_log.py",
        'self._has_digests = session.folder is not None or session.method == "replay"',
        "self._has_digests = True",
        "training/test_history.py::test_it_has_every_row_of_the_run_once_with_files_and_without",
    ),
    Mutation(
        "metrics/digests.py",
        "tensor.dtype.to_real())",
        "tensor.dtype)",
        "networks/test_sharded_networks.py::test_digests_of_rows_do_not_depend_on_how_networks_and_samples_are_divided",
    ),
    Mutation(
        "loading/split_loader.py",
        "if self._has_digest and self._order is not None",
        "if self._order is not None",
        DIGESTED + "test_nobody_makes_digests_of_samples_that_no_row_has",
    ),
    Mutation(
        "callbacks.py",
        "                    tensors[name] = wide[id(tensor)]",
        "                    tensors[name] = wide.setdefault(0, wide[id(tensor)])",
        CALLBACKS + "test_the_average_of_a_scripted_network_has_each_of_its_parameters",
    ),
    Mutation(
        "loading/iterable_loader.py",
        "if for_training and draws and not",
        "if for_training and not",
        LOADERS + "test_a_list_of_batches_keeps_no_states_of_random_numbers_and_a_loader_does",
    ),
    Mutation("metrics/digests.py", "folds=flat.element_size() == 8", "folds=False", SEEN_BITS),
    Mutation(
        "metrics/digests.py",
        "return (numbers >> 32).add_(numbers) if",
        "return (numbers >> 32).bitwise_xor_(numbers) if",
        SEEN_BITS,
    ),
    Mutation("metrics/digests.py", "32, out=memory).add_(numbers)", "32, out=memory)", DEFINED_DIGEST),
    Mutation("metrics/digests.py", "        begin = -first % _BLOCK", "        begin = first", DEFINED_DIGEST),
    Mutation("metrics/digests.py", "indices.mul_(_OTHER_ODD).bitwise_or_(1)", "1", DEFINED_DIGEST),
    Mutation(
        "metrics/digests.py",
        ".view(-1, _BLOCK).mul(odd).sum(1)",
        ".view(-1, _BLOCK).sum(1)",
        "test_emulated_device.py::test_the_trainer_is_right_on_another_device",
    ),
    Mutation(
        "metrics/digests.py",
        "total if start < _BLOCK else total.mul_(_signed(start // _BLOCK * _OTHER_ODD | 1))",
        "total",
        DIGESTED + "test_parts_of_a_digest_add_up_wherever_they_are_cut",
    ),
    Mutation(
        "metrics/digests.py",
        "total = torch.dot(self._long(numbers, folds=folds), odd)",
        "total = numbers.long().sum()",
        SEEN_BITS,
    ),
    Mutation(
        "metrics/digests.py",
        "self._total, self._number, self._is_known = (state_dict",
        "_ = (state_dict",
        CUT_BETWEEN_ROWS,
    ),
    Mutation(
        "loading/split_loader.py",
        "                self.add_to_digest(self._num_finished + i + 1)",
        "                pass",
        CUT_BETWEEN_ROWS + "[passes]",
    ),
    Mutation(
        "loading/train_data.py",
        "            self._add_to_digest()\n            own =",
        "            own =",
        CUT_BETWEEN_ROWS,
    ),
    Mutation(
        "training/training_log.py",
        "session.loggers.log_metrics(row,",
        "session.loggers.log_metrics(with_digests,",
        ROW_DIGESTS,
    ),
    Mutation("training/training_log.py", 'if each["step"] < self._state.step]', "if False]", CUT_BETWEEN_ROWS),
    Mutation(
        "loading/sample_order.py",
        "return self._order[self._start + low : self._start + high]",
        "return self._order[low:high]",
        CUT_BETWEEN_ROWS,
    ),
    Mutation(
        "metrics/digests.py",
        "start + first * row",
        "start",
        "networks/test_sharded_networks.py::test_digests_of_rows_do_not_depend_on_how_networks_and_samples_are_divided",
    ),
    Mutation(
        "changes/sources.py",
        "                pending += imported\n",
        "",
        DIGESTED + "test_config_json_names_the_code_of_a_program_and_of_what_it_imports",
    ),
    # Accelerators, by the emulated one.
    Mutation("networks/parallel.py", "        move_in_place(net, self.device)  # B", "        # B", SAME_OBJECTS),
    Mutation("networks/fsdp.py", "name: dict(vars(p)) for", "name: vars(p) for", RANKS_ON_DEVICES),
    Mutation("processes/devices.py", "        p.__class__ = kind\n", "", SAME_OBJECTS),
    Mutation("processes/devices.py", "        vars(p).update(attributes)\n", "", SAME_OBJECTS),
    Mutation(
        "processes/devices.py",
        "        p.grad = None if gradient is None else gradient.to(device)\n",
        "        pass\n",
        SAME_OBJECTS,
    ),
    Mutation(
        "processes/devices.py",
        "                module._buffers[name] = buffer.to(device)\n",
        "                pass\n",
        RANKS_ON_DEVICES,
    ),
    Mutation(
        "networks/parallel.py",
        " or not can_replace_memory(p, self.device)",
        "",
        EMULATED + "test_a_hook_that_another_device_would_lose_is_an_error",
    ),
    Mutation("processes/devices.py", "{} if waits or not", "{} if True or not", EMULATED + MOVED_BY_DEVICE),
    Mutation("processes/devices.py", "return tensor.clone().to(", "return tensor.to(", EMULATED + MOVED_BY_DEVICE),
    Mutation("processes/devices.py", "if place >= len(indices):", "if False:", EMULATED + TYPES),
    Mutation("processes/devices.py", "            _check_products(device)\n", "", EMULATED + TOO_LATE),
    Mutation("processes/devices.py", "        os.environ.pop(_CUBLAS, None)\n", "        pass\n", EMULATED + TOO_LATE),
    Mutation("processes/devices.py", "        return torch.float32\n", "        raise\n", EMULATED + NO_FLOAT64),
    Mutation(
        "processes/devices.py",
        "    except RuntimeError:  # The program has set it by",
        "    except TypeError:  # By",
        PRODUCTS,
    ),
    Mutation("checkpoints/snapshot.py", "non_blocking=is_async", "non_blocking=False", EMULATED + ONE_WAIT),
    Mutation(
        "checkpoints/snapshot.py",
        "            torch.accelerator.synchronize(device)",
        "            pass",
        EMULATED + ONE_WAIT,
    ),
    Mutation(
        "checkpoints/sharded.py",
        ", per_thread_copy_ahead=0",
        "",
        EMULATED + "test_the_thread_that_writes_shards_uses_no_device",
    ),
    Mutation("processes/worker.py", 'map_location="cpu", ', "", LAUNCHED_LATER),
    Mutation(
        "processes/devices.py",
        "cudnn_benchmark(False if deterministic else benchmark)",
        "cudnn_benchmark(benchmark)",
        TRAINING + "test_cudnn_measures_in_training_and_not_in_evaluations",
    ),
    Mutation(
        "processes/devices.py",
        "    if value is not None:\n        torch.backends.cudnn.benchmark = value",
        "    torch.backends.cudnn.benchmark = bool(value)",
        TRAINING + "test_cudnn_measures_in_training_and_not_in_evaluations",
    ),
    Mutation("checkpoints/optimizer_states.py", 'state["mu_product"].cpu()', 'state["mu_product"]', EMULATED + RESUMED),
    Mutation("training/resuming.py", " or isinstance(parts.get(name), Optimizer)", "", EMULATED + RESUMED),
    Mutation(
        "metrics/accumulator.py",
        "return tensor.detach().to(self.device, self._dtype, copy=True).reshape(())",
        "return float(tensor)",
        EMULATED + BETWEEN_ROWS,
    ),
    Mutation(
        "training/training_log.py",
        "            torch.accelerator.synchronize(self._session.device)",
        "            pass",
        EMULATED + PAUSED,
    ),
    Mutation("training/session.py", "and is_slower_than_it_might_be(self.device)", "and False", EMULATED + SLOWER),
    Mutation("training/evaluator.py", "    context.precision.keep_loss()\n", "", TRAINING + REUSED_LOSS),
    Mutation("loading/split_loader.py", "self._pins = pins and split", "self._pins = False and split", PINNED),
    Mutation(
        "loading/split_loader.py",
        "Pinning(collate or default_collate), True",
        "Pinning(collate or default_collate), False",
        EMULATED + "test_batches_of_workers_are_pinned_and_keep_what_else_they_hold",
    ),
    Mutation(
        "loading/pinning.py",
        "map_batch(self.batch, Tensor.pin_memory, _as_it_is)",
        "self.batch",
        EMULATED + "test_batches_of_workers_are_pinned_and_keep_what_else_they_hold",
    ),
    Mutation("model_internals/out_of_memory.py", "error.add_note(words)", "pass", USED_UP),
    Mutation("training/session.py", "        check_own_devices(self.device, self.world)\n", "", RANKS_ON_DEVICES),
    Mutation("processes/world.py", 'f"cpu:gloo,{device_type}:{own}"', '"gloo"', RANKS_ON_DEVICES),
]


def is_emulated(test: str) -> bool:
    """Return whether a test needs a process with the emulated device."""
    return test.startswith(EMULATED)


def pytest(copy: Path, tests: Iterable[str]) -> tuple[int | None, str]:
    """Run tests in the copy; return the exit status, None if they took too long, and what was printed."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"EMULATED": "1"} if any(map(is_emulated, tests)) else {}
    output = copy.with_name("output")  # A file: processes that a test has lost would keep a pipe open.
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=copy, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    return status, output.read_text(encoding="utf-8", errors="replace")[-2000:]


def verdict(copy: Path, mutation: Mutation, dry: bool) -> str:
    """Apply a change to the copy, run its test, and take the change back; a dry run only looks whether it applies."""
    path = copy / mutation.path
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before.count(mutation.old) != 1:
        return f"does not apply: the text is {before.count(mutation.old)} times in {mutation.path}"
    file, _, name = mutation.test.partition("::")
    tests = copy / "tests" / file
    function = f"def {name.partition('[')[0]}(" if name else ""
    if not tests.exists() or function not in tests.read_text(encoding="utf-8"):
        return f"does not apply: there is no {mutation.test}"
    if dry:
        return "applies"
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, output = pytest(copy, [mutation.test])
    finally:
        path.write_text(before, encoding="utf-8")
    if status == 1:  # Tests were run, and one failed.
        return "caught"
    if status == 0:
        return "NOT CAUGHT"
    return f"no verdict: pytest ended with {status}\n{output}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="word", default="", help="only changes with this word in them")
    parser.add_argument("--dry-run", action="store_true", help="do not run the tests")
    arguments = parser.parse_args()
    chosen = [each for each in MUTATIONS if any(arguments.k in part for part in dataclasses.astuple(each))]
    if not chosen:
        parser.error(f"no change has {arguments.k!r} in it")
    good = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "runs"))
        # A change of the source is noticed whenever it was made.
        compileall.compile_dir(copy, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        if not arguments.dry_run:
            tests = sorted({mutation.test for mutation in chosen})
            for group in ([test for test in tests if is_emulated(test) is kind] for kind in (False, True)):
                status, output = pytest(copy, group) if group else (0, "")
                if status != 0:
                    sys.exit(f"the tests do not pass without any change\n{output}")
        for mutation in chosen:
            found = verdict(copy, mutation, arguments.dry_run)
            good += found in ("caught", "applies")
            print(f"{mutation.file}: {mutation.old.strip()!r} -> {mutation.new.strip()!r}: {found}", flush=True)
    print(f"{good} of {len(chosen)} {'apply' if arguments.dry_run else 'caught'}")
    sys.exit(good < len(chosen))


if __name__ == "__main__":
    main()
