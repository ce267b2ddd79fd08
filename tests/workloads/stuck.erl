%% SPDX-License-Identifier: Apache-2.0
%% Brings a VM into stuck states, and prints what the VM itself says of them.
%%
%%   collect          a process, stuck_collector, that collects a large heap again and again: "done"
%%   wedge N          N processes that never leave a native function on normal schedulers 1 to N: "done"
%%   dirty N          processes stuck_dirty_1 to N that do so on dirty CPU schedulers: "done"
%%   spin N           N processes that compute for ever
%%   online N         N schedulers online
%%   queues           "queues A,B,...": run_queue_lengths_all
%%   bound I          a process, stuck_bound, that computes for ever on normal scheduler I: "done"
%%   suspend          a process, stuck_suspended, that stuck_suspender suspends twice: "suspend PID" of that
%%   block            a process, stuck_writer, that waits for a port: "block PORT"; its program reads nothing
%%   atoms N          N new atoms: "atoms COUNT LIMIT"
%%   halt             "done", and then erlang:halt(3)
-module(stuck).
-export([start/0, main/0, collector/1, spinner/0, suspender/1, writer/2]).

start() -> spawn_opt(?MODULE, main, [], [{priority, high}]).

main() -> register(stuck_main, self()), control:serve(fun(_) -> ok end, fun command/2).

command(_, ["collect"]) ->
    named(stuck_collector, spawn(?MODULE, collector, [lists:seq(1, 1000000)]));
command(_, ["wedge", N]) ->
    _ = names_nif:load(),  %% it may be loaded already
    [spawn_opt(fun() -> receive after 100 -> names_nif:wedge() end end, [{scheduler, I}])
     || I <- lists:seq(1, list_to_integer(N))],
    "done";
command(_, ["dirty", N]) ->
    _ = names_nif:load(),  %% it may be loaded already
    [named(list_to_atom("stuck_dirty_" ++ integer_to_list(I)), spawn(fun names_nif:dirty/0))
     || I <- lists:seq(1, list_to_integer(N))],
    "done";
command(_, ["bound", I]) ->
    Spin = [{scheduler, list_to_integer(I)}],
    named(stuck_bound, spawn_opt(?MODULE, spinner, [], Spin));
command(_, ["spin", N]) ->
    [spawn(?MODULE, spinner, []) || _ <- lists:seq(1, list_to_integer(N))],
    "done";
command(_, ["online", N]) ->
    _ = erlang:system_flag(schedulers_online, list_to_integer(N)),
    "done";
command(_, ["queues"]) ->
    Lengths = erlang:statistics(run_queue_lengths_all),
    ["queues ", lists:join(",", [integer_to_list(N) || N <- Lengths])];
command(_, ["suspend"]) ->
    Pid = spawn(fun() -> receive stop -> ok end end),
    named(stuck_suspended, Pid),
    named(stuck_suspender, spawn(?MODULE, suspender, [Pid])),
    until(fun() -> process_info(Pid, status) =:= {status, suspended} end),
    ["suspend ", pid_to_list(whereis(stuck_suspender))];
command(_, ["block"]) ->
    %% Until the VM is gone.
    Pid = spawn(?MODULE, writer, [self(), "sh -c 'while kill -0 $PPID; do sleep 1; done'"]),
    named(stuck_writer, Pid),
    receive {Pid, Port} -> ok end,
    until(fun() -> process_info(Pid, status) =:= {status, suspended} end),
    ["block ", erlang:port_to_list(Port)];
command(_, ["atoms", N]) ->
    [list_to_atom("stuck_" ++ integer_to_list(I)) || I <- lists:seq(1, list_to_integer(N))],
    io_lib:format("atoms ~b ~b", [erlang:system_info(atom_count), erlang:system_info(atom_limit)]);
command(Control, ["halt"]) ->
    control:say(Control, "done"),
    erlang:halt(3).

named(Name, Pid) -> true = register(Name, Pid), "done".

collector(Heap) ->
    erlang:garbage_collect(),
    collector(Heap).

spinner() -> spinner().

suspender(Pid) ->
    erlang:suspend_process(Pid),
    erlang:suspend_process(Pid),
    receive stop -> ok end.

writer(Main, Program) ->
    Port = open_port({spawn, Program}, [binary]),
    Main ! {self(), Port},
    write(Port).

write(Port) ->
    erlang:port_command(Port, binary:copy(<<0>>, 1000000)),
    write(Port).

until(Holds) ->
    case Holds() of
        true -> ok;
        false -> receive after 1 -> until(Holds) end
    end.
