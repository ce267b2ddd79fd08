%% SPDX-License-Identifier: Apache-2.0
%% A ring of processes, each of which starts a token that goes round once.
%%
%%   command     answers
%%   make N      "made PID PID ...": the processes in the order of the ring; none has had a message
%%   go          "done go COUNT": all tokens are back, COUNT = N * N messages were passed
%%   report      "report 1212...": for each process in turn, on which scheduler each of its N
%%               messages was handled, in the order in which it handled them
%%
%% Every other process is bound to scheduler 2, so that both work. The main process sends each process
%% one message to begin with, and asks for the report by another.
-module(ring).
-export([start/0, main/0, member/4]).

%% For erl -s ring.
start() -> spawn(?MODULE, main, []).

main() ->
    register(ring_main, self()),
    control:serve(fun(_Control) -> warm_up() end, fun command/2).

warm_up() ->
    make(3), go(), report().

command(_Control, ["make", N]) ->
    Pids = make(list_to_integer(N)),
    ["made", [[" ", pid_to_list(Pid)] || Pid <- Pids]];
command(_Control, ["go"]) -> ["done go ", integer_to_list(go())];
command(_Control, ["report"]) -> ["report ", report()].

make(N) ->
    Done = atomics:new(1, []),
    Pids = [begin
        Bound = [{scheduler, 1 + I rem erlang:system_info(schedulers)}],
        spawn_opt(?MODULE, member, [self(), N, Done, []], Bound)
    end || I <- lists:seq(1, N)],
    put(ring, {Pids, N, Done}),
    Pids.

go() ->
    {Pids, N, Done} = get(ring),
    Ring = list_to_tuple(Pids),
    [element(I, Ring) ! {start, element(I rem N + 1, Ring)} || I <- lists:seq(1, N)],
    wait(Done, N * N).

wait(Done, Count) ->
    case atomics:get(Done, 1) of
        Count -> Count;
        _ -> receive after 1 -> wait(Done, Count) end
    end.

report() ->
    {Pids, _, _} = get(ring),
    [begin
        Pid ! report,
        receive {Pid, Where} -> [integer_to_list(S) || S <- Where] end
    end || Pid <- Pids].

member(Main, N, Done, []) ->
    receive {start, Next} -> Next ! {token, 1}, member(Main, N, Done, Next, [], []) end.

%% Tokens that came before the start wait in the mailbox: the receive above leaves them there.
member(Main, N, Done, Next, Where, []) ->
    receive
        {token, Hops} ->
            atomics:add(Done, 1, 1),
            _ = [Next ! {token, Hops + 1} || Hops < N],
            member(Main, N, Done, Next, [erlang:system_info(scheduler_id) | Where], []);
        report ->
            Main ! {self(), lists:reverse(Where)}
    end.
