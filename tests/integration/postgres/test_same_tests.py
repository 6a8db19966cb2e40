"""Repeats tests of files of SQLite over PostgreSQL, behind PgBouncer.

These are some of the tests of what the server keeps; all of them run so by
``pytest --database postgresql`` and ``--database pgbouncer``.
"""

from collections.abc import Iterator

import pytest

from tests.support.databases import Databases, opened, redirect
from tests.support.postgres import PostgresServer
from tests.unit.access import test_keys as keys
from tests.unit.access import test_tokens as tokens
from tests.unit.access.usage import test_rows as usage
from tests.unit.audit import test_log as audit
from tests.unit.batches import test_rows as batches
from tests.unit.downloads import test_rows as downloads
from tests.unit.gateways import test_membership as gateways
from tests.unit.results import test_files as files
from tests.unit.tasks import test_responses as responses
from tests.unit.tasks import test_tasks as tasks


@pytest.fixture(scope="module")
def over(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Yield what makes a database of PostgreSQL in the place of each file."""
    with (
        opened(postgres, "pgbouncer", request.config) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        redirect(made, patch)
        yield made


home = keys.home
test_key_works = keys.test_key_works_at_once_and_after_a_restart
test_key_is_revoked = keys.test_revocation_holds_at_once_and_for_ever
test_admin_key_is_made_once = keys.test_admin_key_is_made_once_at_the_first_start
test_last_use_is_kept = keys.test_last_use_is_kept_in_batches
test_token_is_revoked = tokens.test_token_that_is_revoked_stays_so

test_usage_is_added = usage.test_usage_is_added_to_rows_over_runs_and_days
test_usage_is_summed = usage.test_usage_is_summed_by_what_is_asked_for

path = audit.path
test_audit_is_selected = audit.test_audit_entries_are_selected_by_who_what_and_when
test_audit_is_rolled_back = audit.test_audit_entry_of_a_transaction_that_is_rolled_back_is_not_there
test_audit_is_pruned = audit.test_audit_retention_keeps_at_most_so_many_entries

test_task_list_is_read = tasks.test_task_list_reads_no_results
test_task_ends_once = tasks.test_task_ends_once
test_tasks_are_bounded = tasks.test_ended_tasks_beyond_the_bound_go_from_the_key_that_holds_most
test_response_has_turns = responses.test_conversation_has_its_turns_in_order
test_files_are_bounded = files.test_files_beyond_the_bound_are_taken_from_the_key_that_holds_most
test_batch_is_read = batches.test_batch_is_read_as_it_was_saved
test_download_is_read = downloads.test_download_is_read_as_it_was_saved

test_tasks_of_the_dead = gateways.test_tasks_of_a_dead_server_are_taken_up_once
test_batch_of_the_dead = (
    gateways.test_batch_of_a_dead_server_goes_on_once_and_is_saved_by_its_owner_only
)
