%% SPDX-License-Identifier: Apache-2.0
%% A quiet VM full of processes of many kinds, and the truth about them.
%%
%%   info     every process as the VM sees it, one line: processes separated by 16#1E, fields by 16#1F,
%%            in the order of fields/0; the first is the one that answers and runs meanwhile
%%   location PID    its stack as M:F/A@file:line, separated by spaces
%%   upgrade  loads another version of names_hot, in which one process waits
%%   storm N / calm   N processes that spawn without end / ends them, answers how many were spawned
-module(names_mix).
-export([start/0, plain/0, task/0, deep/1, spawner/1]).

start() -> spawn(fun() -> main(size()) end).

size() ->
    case init:get_argument(names_size) of
        {ok, [[N]]} -> list_to_integer(N);
        _ -> 10000
    end.

main(N) ->
    register(names_main, self()),
    group_leader(whereis(init), self()),
    {ok, _} = names_sup:start_link(N div 5),
    Servers = [ok(names_server:start_link(I)) || I <- lists:seq(1, N div 5)],
    [ok(names_server:start_link(hibernate)) || _ <- lists:seq(1, N div 10)],
    [ok(names_statem:start_link()) || _ <- lists:seq(1, N div 10)],
    {ok, _} = gen_event:start_link({local, names_event}),
    [proc_lib:spawn(?MODULE, task, []) || _ <- lists:seq(1, N div 20)],
    [proc_lib:spawn(fun task/0) || _ <- lists:seq(1, N div 20)],
    Plain = [spawn(?MODULE, plain, []) || _ <- lists:seq(1, N div 10)],
    [spawn(fun plain/0) || _ <- lists:seq(1, N div 20)],
    [register(list_to_atom("names_plain_" ++ integer_to_list(I)), P)
     || {I, P} <- lists:zip(lists:seq(1, length(Plain)), Plain), I rem 4 =:= 0],
    [mailbox(I) || I <- lists:seq(1, N div 50)],
    spawn_link(fun() -> register(names_full, self()), deaf() end),
    until(fun() -> whereis(names_full) =/= undefined end),
    [names_full ! {'$gen_call', {self(), make_ref()}, I} || I <- lists:seq(1, 3)],
    names_full ! go, names_full ! "text", names_full ! {self(), <<"secret">>},
    [names_full ! {filler, I} || I <- lists:seq(1, 1000)],
    [spawn(fun() -> heap(I) end) || I <- lists:seq(1, N div 50)],
    [spawn_opt(fun plain/0, [{priority, P}, {message_queue_data, D}])
     || P <- [low, normal, high], D <- [on_heap, off_heap]],
    [spawn(fun() -> watch(Servers, I) end) || I <- lists:seq(1, N div 100)],
    spawn(fun() -> erlang:suspend_process(hd(Plain)), plain() end),
    [spawn(fun() -> label(I) end) || I <- lists:seq(1, 50)],
    spawn(fun() -> register(names_deep, self()), deep(20) end),
    spawn(fun() -> register('names odd\nname \x{e9}\x{3b1}', self()), plain() end),
    spawn(fun() -> register(names_deaf, self()), deaf() end),
    until(fun() -> whereis(names_deaf) =/= undefined end),
    spawn(fun() -> register(names_waiter, self()), gen_server:call(names_deaf, x, infinity) end),
    hot(),
    control:serve(fun(_) -> settle() end, fun command/2).

ok({ok, Pid}) -> Pid.

command(_, ["info"]) -> info();
command(_, ["location", Pid]) -> stack(list_to_pid(Pid));
command(_, ["upgrade"]) -> hot_version(2), names_hot ! upgrade, await_version(2), "done";
command(_, ["storm", N]) ->
    Counter = counters:new(1, [write_concurrency]),
    put(storm, {Counter, [spawn(?MODULE, spawner, [Counter]) || _ <- lists:seq(1, list_to_integer(N))]}),
    "done";
command(_, ["calm"]) ->
    {Counter, Spawners} = get(storm),
    [exit(P, kill) || P <- Spawners],
    io_lib:format("done ~b", [counters:get(Counter, 1)]);
command(_, ["nif"]) -> nif(false);
command(_, ["nif", "dirty"]) -> nif(true);
command(_, ["work", Seconds]) -> work(list_to_integer(Seconds)).

%% Processes ---------------------------------------------------------------------------------------

plain() -> receive never -> ok end.
task() -> receive never -> ok end.
deaf() -> receive never -> ok end.

deep(0) -> plain(), ok;
deep(N) -> deep(N - 1), self().

mailbox(I) ->
    P = spawn_opt(fun plain/0, [{message_queue_data, case I rem 2 of 0 -> on_heap; 1 -> off_heap end}]),
    [P ! message(I, J) || J <- lists:seq(1, I rem 300)].

message(I, J) when J rem 3 =:= 0 -> {ping, lists:seq(1, I rem 100), self()};
message(_, J) when J rem 3 =:= 1 -> binary:copy(<<"x">>, J * 10);
message(_, J) -> J.

heap(I) ->
    L = lists:seq(1, I * 1000),
    put(kept, {I, L}),
    [put({key, J}, J) || J <- lists:seq(1, I rem 40)],
    if I rem 2 =:= 0 -> erlang:garbage_collect(); true -> ok end,
    plain(),
    L.

watch(Servers, I) ->
    [erlang:monitor(process, lists:nth(1 + (I * 7 + J) rem length(Servers), Servers))
     || J <- lists:seq(1, I rem 20)],
    [link(lists:nth(1 + (I * 5 + J) rem length(Servers), Servers)) || J <- lists:seq(1, I rem 20)],
    erlang:monitor(process, names_event),
    process_flag(trap_exit, true),
    plain().

label(I) ->
    case erlang:function_exported(proc_lib, set_label, 1) of
        true -> (fun() -> apply(proc_lib, set_label, [{names_label, I, "text"}]) end)();
        false -> ok
    end,
    plain().

%% Waits for the last of each batch: the table must not run full, or the storm is over.
spawner(Counter) ->
    Self = self(),
    [spawn(fun() -> ok end) || _ <- lists:seq(1, 99)],
    spawn_link(fun() -> Self ! done end),
    receive done -> ok end,
    counters:add(Counter, 1, 100),
    spawner(Counter).

work(Seconds) ->
    End = erlang:monotonic_time(millisecond) + Seconds * 1000,
    Self = self(),
    Before = erlang:statistics(exact_reductions),
    Workers = [spawn(fun() -> Self ! {self(), worker(End, 0)} end)
               || _ <- lists:seq(1, erlang:system_info(schedulers))],
    Sum = lists:sum([receive {W, Count} -> Count end || W <- Workers]),
    {R0, _} = Before, {R1, _} = erlang:statistics(exact_reductions),
    io_lib:format("done ~b ~b", [Sum, R1 - R0]).

worker(End, Count) ->
    case erlang:monotonic_time(millisecond) < End of
        true -> _ = lists:foldl(fun(X, A) -> (X * A + 7) rem 1009 end, 1, lists:seq(1, 1000)), worker(End, Count + 1);
        false -> Count
    end.

nif(Dirty) ->
    ok = names_nif:load(),
    Function = case Dirty of true -> fun names_nif:dirty/0; false -> fun names_nif:wedge/0 end,
    %% Bound to its scheduler each: work that waits behind a native function may wait for ever.
    [spawn_opt(fun() -> register(list_to_atom("names_nif_" ++ integer_to_list(I)), self()), Function() end,
               [{scheduler, case Dirty of true -> 0; false -> I end}])
     || I <- lists:seq(1, erlang:system_info(schedulers_online))],
    "done".

%% Hot code -----------------------------------------------------------------------------------------

hot() ->
    hot_version(1),
    spawn(fun() -> register(names_hot, self()), apply(names_hot, loop, []) end),
    await_version(1).

hot_version(N) ->
    Line = erl_anno:new(100 * N),
    Loop = list_to_atom("loop_" ++ integer_to_list(N)),
    Module = [
        {attribute, Line, file, {"names_hot_" ++ integer_to_list(N) ++ ".erl", 100 * N}},
        {attribute, Line, module, names_hot}, {attribute, Line, export, [{loop, 0}]},
        {function, Line, loop, 0, [{clause, Line, [], [], [{call, Line, {atom, Line, Loop}, []}]}]},
        {function, Line, Loop, 0, [{clause, Line, [], [], [
            {'receive', Line, [{clause, Line, [{atom, Line, upgrade}], [],
                [{call, Line, {remote, Line, {atom, Line, names_hot}, {atom, Line, loop}}, []}]}]}]}]}],
    {ok, names_hot, Binary} = compile:forms(Module, []),
    code:purge(names_hot),
    {module, names_hot} = code:load_binary(names_hot, "names_hot.erl", Binary).

await_version(N) ->
    Loop = list_to_atom("loop_" ++ integer_to_list(N)),
    until(fun() -> whereis(names_hot) =/= undefined andalso
        erlang:process_info(whereis(names_hot), current_function) =:= {current_function, {names_hot, Loop, 0}} end).

until(Condition) -> case Condition() of true -> ok; false -> erlang:yield(), until(Condition) end.

%% The truth ---------------------------------------------------------------------------------------

%% Quiet is a VM whose processes all wait, twice with the same reductions.
settle() ->
    [erlang:process_info(P, [message_queue_len, memory, total_heap_size]) || P <- processes()],
    until(fun() -> reductions() =:= begin receive after 300 -> ok end, reductions() end end).

reductions() -> [erlang:process_info(P, reductions) || P <- processes(), P =/= self()].

fields() -> [registered_name, initial_call, status, current_function, reductions, message_queue_len, memory,
             heap_size, stack_size, garbage_collection, parent, group_leader, dictionary].

info() ->
    Processes = [self() | processes() -- [self()]],
    lists:join(16#1E, [one(P) || P <- Processes]).

one(P) ->
    Info = maps:from_list(erlang:process_info(P, fields())),
    #{status := Status, reductions := R, message_queue_len := Q, memory := M, heap_size := H,
      stack_size := S, garbage_collection := G, parent := Parent, group_leader := L, dictionary := D} = Info,
    lists:join(16#1F, [
        pid_to_list(P), name(maps:get(registered_name, Info)),
        mfa(proplists:get_value('$initial_call', D, maps:get(initial_call, Info))),
        atom_to_list(Status), mfa(maps:get(current_function, Info)),
        integer_to_list(R), integer_to_list(Q), integer_to_list(M), integer_to_list(H), integer_to_list(S),
        integer_to_list(proplists:get_value(minor_gcs, G)),
        case is_pid(Parent) of true -> pid_to_list(Parent); false -> "" end,
        pid_to_list(L),
        case proplists:get_value('$process_label', D) of
            undefined -> "";
            Label -> io_lib:format("~0tp", [Label])
        end]).

name([]) -> "";
%% A line is a line: the answer says 16#1D where a name has a newline.
name(Name) -> binary:replace(unicode:characters_to_binary(atom_to_list(Name)), <<"\n">>, <<16#1D>>, [global]).

mfa({M, F, A}) -> io_lib:format("~ts:~ts/~b", [M, F, A]);
mfa(undefined) -> "".

stack(P) ->
    {current_stacktrace, Stack} = erlang:process_info(P, current_stacktrace),
    lists:join(" ", [[mfa({M, F, A}), $@, proplists:get_value(file, I, ""), $:,
                      integer_to_list(proplists:get_value(line, I, 0))] || {M, F, A, I} <- Stack]).
