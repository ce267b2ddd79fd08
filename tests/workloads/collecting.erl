%% SPDX-License-Identifier: Apache-2.0
%% Small collections, as many as fit, and how long they took by the VM's own account.
%%
%%   run MS    collects for so long: "done run MICROSECONDS COUNT", by msacc and statistics
-module(collecting).
-export([start/0, main/0]).

start() -> spawn(?MODULE, main, []).

main() -> control:serve(fun(_) -> _ = run(50) end, fun(_, ["run", N]) -> run(list_to_integer(N)) end).

run(Milliseconds) ->
    erlang:system_flag(microstate_accounting, true),
    {Before, _, _} = erlang:statistics(garbage_collection),
    Worked = worked(),
    {_, Monitor} = spawn_monitor(fun() -> busy(erlang:monotonic_time(millisecond) + Milliseconds) end),
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    Took = worked() - Worked,
    {After, _, _} = erlang:statistics(garbage_collection),
    erlang:system_flag(microstate_accounting, false),
    io_lib:format("done run ~b ~b", [erlang:convert_time_unit(Took, perf_counter, microsecond), After - Before]).

busy(End) ->
    _ = lists:seq(1, 300),
    case erlang:monotonic_time(millisecond) < End of
        true -> busy(End);
        false -> ok
    end.

%% What all threads spent in collections; gc_full is its own where the VM was built so.
worked() ->
    lists:sum([N || #{counters := Counters} <- erlang:statistics(microstate_accounting),
                    {State, N} <- maps:to_list(Counters), lists:member(State, [gc, gc_full])]).
