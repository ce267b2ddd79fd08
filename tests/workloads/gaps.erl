%% SPDX-License-Identifier: Apache-2.0
%% What a scheduler misses while it runs: see gaps_nif.c. The library is found by an environment
%% variable, because it is built by the bench.
%%
%%   gaps MILLISECONDS DEPTH   answers "done gaps COUNT NS ON", beneath DEPTH Erlang frames: gaps, and
%%                             nanoseconds of them and of being on a CPU
%%   work SECONDS DEPTH        turns in Erlang code, beneath DEPTH frames; answers "done work N"
-module(gaps).
-export([start/0, watch/1]).
-export([main/0]).

start() -> spawn(?MODULE, main, []).

main() ->
    ok = erlang:load_nif(os:getenv("GAPS_NIF"), 0),
    control:serve(fun(_) -> ok end, fun command/2).

command(_Control, ["gaps", Milliseconds, Depth]) ->
    {Count, Gaps, On} = deep(list_to_integer(Depth), fun watch/1, list_to_integer(Milliseconds)),
    ["done gaps", [[" ", integer_to_list(N)] || N <- [Count, Gaps, On]]];
command(_Control, ["work", Seconds, Depth]) ->
    End = erlang:monotonic_time(microsecond) + list_to_integer(Seconds) * 1000000,
    ["done work ", integer_to_list(deep(list_to_integer(Depth), fun turns/1, End))].

%% Not a tail call: each has a frame.
deep(0, Function, Value) -> Function(Value);
deep(Depth, Function, Value) ->
    Result = deep(Depth - 1, Function, Value),
    true = Result =/= none,
    Result.

turns(End) -> turns(End, 0).

turns(End, Turns) ->
    _ = spin(20000, 0),
    case erlang:monotonic_time(microsecond) < End of
        true -> turns(End, Turns + 1);
        false -> Turns
    end.

spin(0, Sum) -> Sum;
spin(N, Sum) -> spin(N - 1, (Sum * 31 + N) band 16#ffffff).

watch(_Milliseconds) -> erlang:nif_error(not_loaded).
