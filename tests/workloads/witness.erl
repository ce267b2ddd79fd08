%% SPDX-License-Identifier: Apache-2.0
%% A VM that says what it knows of itself, for tests that read it from outside. Each command answers one
%% line: "facts key=value ...", or "done NAME COUNT".
%%
%%   statistics   counters, tables and limits
%%   allocators   bytes of the carriers of each allocator, those in the pool too
%%   memory       erlang:memory/0
%%   tables N     N ETS tables, which stay
%%   hold N       N megabytes of binaries, and about as many of ETS, which stay
%%   sleepers N   N processes that wait, and stay
%%   crowd N      N processes that never wait, until "disperse"
%%   flicker N    N milliseconds in which a process wakes up each millisecond; answers for how many
%%                microseconds the normal schedulers worked meanwhile, as scheduler_wall_time says
%%   tick N       N processes that wake a scheduler each millisecond, from now on
%%   dirty_gc N   N collections of a heap so large that a dirty scheduler does them
%%   become       ends the VM: its process runs what the environment variable BECOME says; no answer
%%   spin KIND N MS  N calls of a native function of MS milliseconds each; KIND is spin or dirty_spin
-module(witness).
-export([start/0]).
-export([main/0, spin/0]).

start() -> spawn_opt(?MODULE, main, [], [{min_heap_size, 100000}]).

main() ->
    erlang:process_flag(priority, high),
    control:serve(fun(_) -> warm_up() end, fun command/2).

warm_up() ->
    [catch answer(Words) || Words <- [["statistics"], ["allocators"], ["memory"], ["crowd", "1"],
                                ["disperse"], ["tables", "1"]]],
    ok.

command(_Control, Words) ->
    try answer(Words)
    catch Class:Reason:Stack -> io_lib:format("failed ~0p", [{Class, Reason, Stack}])
    end.

answer(["statistics"]) ->
    {{input, In}, {output, Out}} = erlang:statistics(io),
    {Collections, Words, _} = erlang:statistics(garbage_collection),
    {Switches, _} = erlang:statistics(context_switches),
    {Reductions, _} = erlang:statistics(reductions),
    facts([
        {context_switches, Switches}, {reductions, Reductions}, {collections, Collections},
        {reclaimed_words, Words}, {bytes_in, In}, {bytes_out, Out},
        {ets_tables, length(ets:all())} |
        [{Name, erlang:system_info(Item)} || {Name, Item} <- [
            {processes, process_count}, {ports, port_count}, {atoms, atom_count},
            {process_limit, process_limit}, {port_limit, port_limit}, {atom_limit, atom_limit},
            {normal, schedulers}, {normal_online, schedulers_online},
            {dirty_cpu, dirty_cpu_schedulers}, {dirty_cpu_online, dirty_cpu_schedulers_online},
            {dirty_io, dirty_io_schedulers}]]]);
answer(["allocators"]) ->
    facts([{Name, carriers(Name)} || Name <- erlang:system_info(alloc_util_allocators)]);
answer(["memory"]) ->
    facts(erlang:memory());
answer(["tables", N]) ->
    [ets:new(table, []) || _ <- lists:seq(1, list_to_integer(N))],
    done("tables", N);
answer(["hold", N]) ->
    Table = ets:new(held, []),
    put(held, [binary:copy(<<0>>, 1 bsl 20) || _ <- lists:seq(1, list_to_integer(N))]),
    Row = list_to_tuple(lists:duplicate(127, row)),
    [ets:insert(Table, {I, Row}) || I <- lists:seq(1, 1024 * list_to_integer(N))],
    erlang:garbage_collect(),
    done("hold", N);
answer(["sleepers", N]) ->
    [spawn(fun() -> receive never -> ok end end) || _ <- lists:seq(1, list_to_integer(N))],
    erlang:garbage_collect(),
    done("sleepers", N);
answer(["crowd", N]) ->
    put(crowd, [spawn(?MODULE, spin, []) || _ <- lists:seq(1, list_to_integer(N))]),
    done("crowd", N);
answer(["flicker", N]) ->
    erlang:system_flag(scheduler_wall_time, true),
    Before = worked(),
    flicker(erlang:monotonic_time(millisecond) + list_to_integer(N)),
    facts([{worked, worked() - Before}]);
answer(["tick", N]) ->
    [spawn(fun tick/0) || _ <- lists:seq(1, list_to_integer(N))],
    done("tick", N);
answer(["dirty_gc", N]) ->
    {Pid, Monitor} = spawn_monitor(fun() ->
        Kept = lists:seq(1, 400000),
        [erlang:garbage_collect() || _ <- lists:seq(1, list_to_integer(N))],
        400000 = length(Kept)
    end),
    receive {'DOWN', Monitor, process, Pid, normal} -> done("dirty_gc", N) end;
answer(["become"]) ->
    _ = names_nif:load(),
    names_nif:become();
answer(["spin", Kind, N, Milliseconds]) ->
    _ = names_nif:load(),
    [ok = names_nif:(list_to_atom(Kind))(list_to_integer(Milliseconds))
     || _ <- lists:seq(1, list_to_integer(N))],
    done("spin", N);
answer(["disperse"]) ->
    Crowd = erase(crowd),
    [exit(Process, kill) || Process <- Crowd],
    gone(Crowd),
    "done disperse".

facts(Pairs) ->
    ["facts" | [io_lib:format(" ~s=~b", [Name, Value]) || {Name, Value} <- Pairs]].

done(Name, N) -> ["done ", Name, " ", N].

spin() -> spin().

flicker(End) ->
    receive after 1 -> ok end,
    case erlang:monotonic_time(millisecond) < End of
        true -> flicker(End);
        false -> ok
    end.

%% Wakes a scheduler each millisecond from now on.
tick() ->
    receive after 1 -> tick() end.

%% Microseconds that normal schedulers worked, since this is measured.
worked() ->
    Normal = erlang:system_info(schedulers),
    Active = lists:sum([A || {I, A, _} <- erlang:statistics(scheduler_wall_time), I =< Normal]),
    erlang:convert_time_unit(Active, native, microsecond).

gone(Processes) ->
    case lists:any(fun is_process_alive/1, Processes) of
        true -> erlang:yield(), gone(Processes);
        false -> ok
    end.

carriers(Name) ->
    lists:sum([Size || {instance, _, Kinds} <- erlang:system_info({allocator_sizes, Name}),
                       {Kind, Sizes} <- Kinds, lists:member(Kind, [mbcs, sbcs, mbcs_pool]),
                       Entry <- Sizes, element(1, Entry) =:= carriers_size,
                       Size <- [element(2, Entry)]]).
