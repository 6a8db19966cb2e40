"""Repeats tests of files of SQLite over PostgreSQL, behind PgBouncer.

These are some of the tests of what the server keeps, so that each function of it which opens a
session of the database does so here, too; the last test says so. All tests run over PostgreSQL by
``make test-postgresql`` and ``make test-pgbouncer``.
"""

from collections.abc import Iterator

import pytest

from tests.integration.server import test_footprints as footprints
from tests.support import sessions
from tests.support.databases import Databases, opened, redirect
from tests.support.postgres import PostgresServer
from tests.unit.access import test_keys as keys
from tests.unit.access import test_tokens as tokens
from tests.unit.access.limits import test_checkpoint as limits
from tests.unit.access.usage import test_rows as usage
from tests.unit.audit import test_chain as chain
from tests.unit.audit import test_inbox as inbox
from tests.unit.audit import test_log as audit
from tests.unit.audit import test_start as start
from tests.unit.batches import test_batches as batch_files
from tests.unit.batches import test_files as client_files
from tests.unit.batches import test_lost_batches as lost_batches
from tests.unit.batches import test_rows as batches
from tests.unit.db import test_transactions as transactions
from tests.unit.db import test_write_behind as write_behind
from tests.unit.downloads import test_rows as downloads
from tests.unit.gateways import test_membership as gateways
from tests.unit.results import test_files as files
from tests.unit.results.cache import test_clearing as clearing
from tests.unit.tasks import test_lost_tasks as lost_tasks
from tests.unit.tasks import test_responses as responses
from tests.unit.tasks import test_tasks as tasks

_RAN: set[str] = set()  #: the functions that have opened a session


@pytest.fixture(scope="module")
def over(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Yield what makes a database of PostgreSQL in the place of each file."""
    with (
        opened(postgres, "pgbouncer", request.config) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        redirect(made, patch)
        sessions.record(patch, _RAN)
        yield made


home = keys.home
test_key_works = keys.test_key_works_at_once_and_after_a_restart
test_key_is_revoked = keys.test_revocation_holds_at_once_and_for_ever
test_admin_key_is_made_once = keys.test_admin_key_is_made_once_at_the_first_start
test_pepper_is_compared = keys.test_pepper_that_made_no_key_of_a_shared_database_is_refused
test_last_use_is_kept = keys.test_last_use_is_kept_in_batches
test_token_is_revoked = tokens.test_token_that_is_revoked_stays_so
test_token_is_forgotten = tokens.test_revocation_of_a_token_is_forgotten_once_it_has_expired

test_usage_is_added = usage.test_usage_is_added_to_rows_over_runs_and_days
test_usage_is_summed = usage.test_usage_is_summed_by_what_is_asked_for
test_usage_is_kept = usage.test_usage_is_kept_for_the_retention
test_limits_hold = limits.test_limits_of_the_last_run_hold_in_the_next
test_limits_are_given_back = limits.test_limits_that_were_given_back_are_whole_after_a_restart
test_write_behind_is_written = write_behind.test_write_behind_of_a_cancelled_flush_is_written_once
test_footprints_are_kept = (
    footprints.test_footprint_that_was_measured_replaces_the_estimate_and_survives_a_restart
)

path = audit.path
test_audit_is_shown = audit.test_audit_entry_is_shown_as_it_was_made
test_audit_is_selected = audit.test_audit_entries_are_selected_by_who_what_and_when
test_audit_is_rolled_back = audit.test_audit_entry_of_a_transaction_that_is_rolled_back_is_not_there
test_audit_is_pruned = audit.test_audit_retention_keeps_at_most_so_many_entries

test_clearing_is_counted = (
    clearing.test_clearing_is_counted_in_a_shared_database_and_not_taken_for_another_s
)

folder = inbox.folder
test_audit_takes_the_inbox = inbox.test_inbox_entry_is_entered_once
test_audit_of_a_stop = start.test_audit_of_a_stop_tells_its_own_time
test_audit_is_found = audit.test_audit_log_finds_the_newest_entry_of_some_actions
test_audit_is_checked = chain.test_audit_check_yields_to_other_threads_and_reads_one_state


test_readers_cannot_write = transactions.test_readers_cannot_write_and_see_what_was_committed
test_writers_take_turns = transactions.test_rollback_follows_an_exception_and_writers_take_turns
test_writer_is_cancelled = transactions.test_cancel_of_a_writer_leaves_the_database_usable

test_task_list_is_read = tasks.test_task_list_reads_no_results
test_task_pages_are_joined = tasks.test_task_pages_join_rows_and_memory_in_one_list
test_task_ends_once = tasks.test_task_ends_once
test_tasks_are_bounded = tasks.test_ended_tasks_beyond_the_bound_go_from_the_key_that_holds_most
test_task_is_lost = lost_tasks.test_task_that_another_server_took_up_is_dropped_as_it_begins
test_response_is_lost = (
    lost_tasks.test_response_of_a_task_that_another_server_took_up_is_ended_there
)
test_responses_are_removed = responses.test_responses_that_are_too_old_are_hidden_and_removed
test_response_is_deleted = (
    responses.test_conversation_with_a_gap_another_s_turn_or_an_open_one_is_refused
)
test_response_has_turns = responses.test_conversation_has_its_turns_in_order
test_files_are_bounded = files.test_files_beyond_the_bound_are_taken_from_the_key_that_holds_most
test_files_are_found = files.test_file_is_its_owner_s_until_it_expires
test_files_are_removed = files.test_cleanup_removes_files_of_expired_rows
test_batch_is_read = batches.test_batch_is_read_as_it_was_saved
test_batch_is_removed = batches.test_batch_that_has_ended_is_removed_in_time
test_batch_is_lost = lost_batches.test_batch_that_another_server_took_up_is_not_begun
test_batch_keeps_its_file = batch_files.test_batch_that_begins_during_a_clean_up_keeps_its_file
test_client_files_are_bounded = client_files.test_file_bounds_hold_for_a_key_and_for_all
test_client_files_expire = (
    client_files.test_file_that_has_expired_is_removed_unless_a_batch_needs_it
)
test_results_are_registered = client_files.test_file_of_results_has_its_size_of_now_and_is_removed
test_download_is_read = downloads.test_download_is_read_as_it_was_saved
test_download_is_forgotten = downloads.test_download_that_has_ended_is_forgotten_after_a_time

test_tasks_of_the_dead = gateways.test_tasks_of_a_dead_server_are_taken_up_once
test_tasks_of_the_stopped = (
    gateways.test_end_of_a_task_is_not_written_by_a_server_that_was_taken_for_dead
)
test_tasks_of_the_leaving = gateways.test_tasks_that_a_draining_server_leaves_are_taken_up_at_once
test_batch_of_the_dead = (
    gateways.test_batch_of_a_dead_server_goes_on_once_and_is_saved_by_its_owner_only
)
test_keys_are_read_again = gateways.test_keys_that_another_server_changed_are_read_again
test_ticket_is_redeemed = gateways.test_ticket_of_one_server_is_redeemed_by_another_once


def test_functions_that_open_a_session_did_so_over_postgresql() -> None:
    wanted = sessions.in_source()
    assert len(wanted) > 50
    assert sorted(wanted - _RAN) == []
