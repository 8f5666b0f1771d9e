// SPDX-License-Identifier: Apache-2.0
import java.net.Socket;

/** As name_client.py. Arguments: rounds, pause in seconds, port, hosts. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        int rounds = Integer.parseInt(arguments[0]), hosts = arguments.length - 3;
        long[] bytes = new long[hosts];
        for (int turn = 0; turn < rounds; turn++) {
            for (int i = 0; i < hosts; i++) {
                int size = 1000 + 10 * turn + i;
                try (Socket there = new Socket(arguments[3 + i], Integer.parseInt(arguments[2]))) {
                    there.getOutputStream().write(new byte[size]);
                    there.shutdownOutput();
                    if (there.getInputStream().readAllBytes().length != size)
                        throw new IllegalStateException(arguments[3 + i]);
                }
                bytes[i] += size;
            }
            Thread.sleep((long) (Double.parseDouble(arguments[1]) * 1000));
        }
        StringBuilder told = new StringBuilder();
        for (int i = 0; i < hosts; i++)
            told.append(i > 0 ? ", " : "").append(
                String.format("\"%s\": [%d, %d]", arguments[3 + i], rounds, bytes[i]));
        System.out.println("{\"pid\": " + ProcessHandle.current().pid() + ", \"hosts\": {" + told + "}}");
    }
}
