%% SPDX-License-Identifier: Apache-2.0
%% Many processes that wait for what never comes, and one, registered as deaf, that has messages and reads
%% none of them. Says "ready" when all of them wait, and every message is in the mailbox.
%%
%%   erl -run crowd start OTHERS MESSAGES
-module(crowd).
-export([start/1]).
-export([main/2, deaf/1, wait/0]).

start(Numbers) -> spawn(?MODULE, main, [list_to_integer(Number) || Number <- Numbers]).

main(Others, Messages) ->
    Crowd = [spawn(?MODULE, wait, []) || _ <- lists:seq(1, Others)],
    Deaf = spawn(?MODULE, deaf, [self()]),
    receive {registered, Deaf} -> ok end,
    [Deaf ! I || I <- lists:seq(1, Messages)],
    Full = [{message_queue_len, Messages}, {status, waiting}],
    until(fun() -> process_info(Deaf, [message_queue_len, status]) =:= Full end),
    [until(fun() -> process_info(Process, status) =:= {status, waiting} end) || Process <- Crowd],
    io:format("ready~n"),
    wait().

deaf(Parent) ->
    register(deaf, self()),
    Parent ! {registered, self()},
    wait().

wait() -> receive never -> wait() end.

until(Holds) ->
    case Holds() of
        true -> ok;
        false -> receive after 1 -> until(Holds) end
    end.
