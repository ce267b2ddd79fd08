%% SPDX-License-Identifier: Apache-2.0
%% A planted split of CPU time: of every hundred turns sixty go to split_a, thirty to split_b and ten
%% to split_c, which do the same work. The time of each, measured in the VM, is printed at the end.
%%
%%   run SECONDS [PROCESSES]   answers "done run A B C": microseconds of each, by the VM's own clock
%%   waits SECONDS             answers "done waits A B": microseconds of two planted waits
-module(split).
-export([start/0]).
-export([main/0, worker/2, turn/1, waiter/2]).

%% For erl -s split.
start() -> spawn(?MODULE, main, []).

main() ->
    register(split_main, self()),
    control:serve(fun(_) -> ok end, fun command/2).

command(_Control, ["run", Seconds]) -> command(none, ["run", Seconds, "1"]);
command(_Control, ["run", Seconds, Processes]) ->
    End = erlang:monotonic_time(microsecond) + list_to_integer(Seconds) * 1000000,
    Parent = self(),
    Workers = [spawn_link(?MODULE, worker, [Parent, End]) || _ <- lists:seq(1, list_to_integer(Processes))],
    Spent = [receive {Worker, Times} -> Times end || Worker <- Workers],
    Sums = [lists:sum([element(N, Times) || Times <- Spent]) || N <- [1, 2, 3]],
    ["done run", [[" ", integer_to_list(Sum)] || Sum <- Sums]];
command(_Control, ["waits", Seconds]) ->
    End = erlang:monotonic_time(microsecond) + list_to_integer(Seconds) * 1000000,
    Parent = self(),
    Waiter = spawn_link(?MODULE, waiter, [Parent, End]),
    {A, B} = receive {Waiter, Times} -> Times end,
    ["done waits ", integer_to_list(A), " ", integer_to_list(B)].

%% Waits in two modules in turn, three times as long in one as in the other; what it really took is
%% measured around each wait.
waiter(Parent, End) -> Parent ! {self(), waits({0, 0}, End)}.

waits({A, B} = Times, End) ->
    T0 = erlang:monotonic_time(microsecond),
    case T0 < End of
        true ->
            ok = split_a:wait(30),
            T1 = erlang:monotonic_time(microsecond),
            ok = split_b:wait(10),
            waits({A + T1 - T0, B + erlang:monotonic_time(microsecond) - T1}, End);
        false -> Times
    end.

worker(Parent, End) ->
    put(turns, 0),
    Parent ! {self(), turns({0, 0, 0}, End)}.

%% Not a tail call, so that the worker is in every stack.
turns(Times, End) ->
    case erlang:monotonic_time(microsecond) < End of
        true ->
            Next = turn(Times),
            turns(Next, End);
        false -> Times
    end.

turn({A, B, C}) ->
    T0 = erlang:monotonic_time(microsecond),
    _ = split_a:work(60),
    T1 = erlang:monotonic_time(microsecond),
    _ = split_b:work(30),
    T2 = erlang:monotonic_time(microsecond),
    _ = split_c:work(10),
    T3 = erlang:monotonic_time(microsecond),
    {A + T1 - T0, B + T2 - T1, C + T3 - T2}.
