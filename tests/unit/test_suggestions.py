# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from scope_ebpf.cli import main
from scope_ebpf.suggestions import bare, close, did_you_mean

#: What is registered in a node that runs RabbitMQ and an Elixir application.
PROCESSES = """
    application_controller code_server erl_prim_loader erts_code_purger file_server_2
    global_group global_name_server inet_db init kernel_refc kernel_safe_sup kernel_sup logger
    logger_handler_watcher logger_proxy logger_std_h_default logger_sup net_kernel
    rabbit_alarm rabbit_amqqueue_sup_sup rabbit_channel_tracking rabbit_event rabbit_log
    rabbit_memory_monitor rabbit_node_monitor rabbit_reader rabbit_sup release_handler rex
    sasl_sup socket_registry ssl_manager standard_error timer_server user vm_memory_monitor
    Elixir.Logger Elixir.Logger.Supervisor Elixir.Phoenix.PubSub Elixir.Shop.Cart
    Elixir.Shop.Checkout Elixir.Shop.Endpoint Elixir.Shop.Repo Elixir.Shop.Slow
    Elixir.Shop.Supervisor Elixir.Task.Supervisor
""".split()  # noqa: SIM905 - so that a person can read them
MODULES = """
    application code erl_eval erlang ets file gen_event gen_server gen_statem inet io io_lib
    lists maps net_kernel proc_lib prim_inet proplists queue sets ssl string supervisor sys
    timer unicode Elixir.Access Elixir.Agent Elixir.Enum Elixir.GenServer Elixir.Jason
    Elixir.Keyword Elixir.Map Elixir.MapSet Elixir.Plug.Conn Elixir.Shop.Cart Elixir.Stream
    Elixir.Shop.CartView Elixir.Shop.Checkout Elixir.String
""".split()  # noqa: SIM905 - so that a person can read them
COMMANDS = list(main.COMMANDS)
OPTIONS = sorted(
    {name for one in COMMANDS for action in main.parser_of(one)._actions
     for name in action.option_strings if name.startswith("--")}
)  # fmt: skip
#: Twenty words as people mistype them, and what was meant, of each kind of name.
MISTYPED = [
    (PROCESSES, "rabit_event", "rabbit_event"),
    (PROCESSES, "Shop.Crat", "Elixir.Shop.Cart"),
    (PROCESSES, "Elixir.Shop.Slw", "Elixir.Shop.Slow"),
    (PROCESSES, "shop.cart", "Elixir.Shop.Cart"),
    (PROCESSES, "net_kernal", "net_kernel"),
    (PROCESSES, "code_sever", "code_server"),
    (PROCESSES, "Phoenix.Pubsub", "Elixir.Phoenix.PubSub"),
    (PROCESSES, "rabbit_mem_monitor", "rabbit_memory_monitor"),
    (PROCESSES, "aplication_controler", "application_controller"),
    (MODULES, "gen_servr", "gen_server"),
    (MODULES, "list", "lists"),
    (MODULES, "Elixir.Shop.Chekout", "Elixir.Shop.Checkout"),
    (MODULES, "Genserver", "Elixir.GenServer"),
    (MODULES, "Elixir.Enumm", "Elixir.Enum"),
    (MODULES, "Elixir.Stirng", "Elixir.String"),
    (COMMANDS, "sheduler", "schedulers"),
    (COMMANDS, "prfoile", "profile"),
    (COMMANDS, "calsl", "calls"),
    (OPTIONS, "--duratoin", "--duration"),
    (OPTIONS, "--maxcost", "--max-cost"),
]


def test_eighteen_of_twenty_mistyped_words_lead_to_what_was_meant():
    """
    Of twenty mistyped processes, modules, commands and options, two at most are not found, and
    what is meant comes first.
    """
    assert len(MISTYPED) == 20
    missed = [
        (word, found, meant)
        for names, word, meant in MISTYPED
        if (found := close(word, names))[:1] != [meant]
    ]
    assert len(missed) <= 2, missed


@pytest.mark.parametrize("word", ["", "x", "telepathy", "\x1b[2J", "0" * 100_000])
def test_a_word_that_is_like_nothing_has_no_suggestion(word: str):
    """
    Nothing is suggested for what is like no name, however long it is.
    """
    assert [] == close(word, PROCESSES)
    assert "" == did_you_mean([])


def test_a_crowd_of_names_is_compared_in_part():
    """
    Another user chooses the names: of a million of them twenty thousand are compared.
    """
    taken = []

    def crowd():
        for number in range(1_000_000):
            taken.append(number)
            yield f"worker_{number}"

    assert "worker_7" in close("worker7", crowd())
    assert len(taken) == 20_000


def test_an_alias_is_written_as_elixir_writes_it():
    """
    The beginning that Elixir adds to an alias is left out, and nothing else.
    """
    assert ("Shop.Cart", "shop", "my_Elixir.X") == tuple(
        map(bare, ("Elixir.Shop.Cart", "shop", "my_Elixir.X"))
    )
